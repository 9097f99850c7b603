// What all CPU kernels share: instruction levels, the fork-join pool, scratch memory.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/// Instruction levels, each a device of its own ("cpu:generic", "cpu:avx2", ...).
/// A level's tables hold the best kernel whose instructions the level includes.
enum ck_level {
  CK_LEVEL_GENERIC = 0,   // portable C
  CK_LEVEL_AVX2 = 1,      // + AVX2, FMA, F16C
  CK_LEVEL_AVX512 = 2,    // + AVX-512 F/BW/VL/DQ
  CK_LEVEL_AVX512BF16 = 3,// + AVX-512 BF16 and VNNI
  CK_LEVEL_AMX = 4,       // + AMX tile, bf16, int8
  CK_LEVEL_NEON = 5,      // arm64
  CK_LEVEL_COUNT = 6
};

/// Whether this processor and operating system can run `level`. AMX permission is asked for on the
/// first call and the level is reported as absent where it is refused.
bool ck_level_available(enum ck_level level);
/// The best available level.
enum ck_level ck_level_best(void);
const char *ck_level_name(enum ck_level level);

/// Bytes of a processor's own second-level cache; a common size where the system does not say.
long ck_near_cache_bytes(void);
/// Results larger than this are written past the caches: the next operation would not find them there.
enum { CK_STREAMED_BYTES = 6 << 20 };

/// Threads that parallel kernels use, the calling one included. At least 1.
/// The default is the number of processors the process may run on.
int ck_thread_count(void);
void ck_set_thread_count(int count);

/// Calls `body(context, begin, end)` over a partition of [0, count) into ranges of at least `grain`
/// items, the calling thread included, and returns when all are done. Runs inline when there is one
/// range, one thread, or when called from inside a body.
void ck_parallel_for(long count, long grain, void (*body)(void *context, long begin, long end),
                     void *context);

/// Scratch memory of the calling thread, 64-byte aligned, uninitialised; valid until the kernel
/// that asked returns. Nested requests take distinct memory: pair each mark with a release.
typedef struct { size_t offset; void *block; } ck_scratch_mark;
ck_scratch_mark ck_scratch_begin(void);
void *ck_scratch(size_t byte_count);   // NULL never: aborts only where malloc of a few MB fails
void ck_scratch_end(ck_scratch_mark mark);

#ifdef __cplusplus
}
#endif
