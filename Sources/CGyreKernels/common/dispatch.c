// Which instruction levels this processor and operating system can run.
#include "ck_common.h"
#include <pthread.h>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#ifdef GYRE_EMULATED_TILES
static bool has_tiles([[maybe_unused]] unsigned state, [[maybe_unused]] unsigned features) { return true; }
#else
enum { REQUEST_STATE_PERMISSION = 0x1023, STATE_TILE_DATA = 18 };

// Linux grants the 8 KB of tile state per process and on request only.
static bool tile_state_granted(void) {
#if defined(__linux__)
  return syscall(SYS_arch_prctl, REQUEST_STATE_PERMISSION, STATE_TILE_DATA) == 0;
#else
  return false;
#endif
}

// Of the operating system's state and the processor's leaf 7.
static bool has_tiles(unsigned state, unsigned features) {
  const bool exist = (features >> 22 & 1) && (features >> 24 & 1) && (features >> 25 & 1);
  return (state & 0x60000) == 0x60000 && exist && tile_state_granted();
}
#endif

static unsigned enabled_state(void) {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

static unsigned detect(void) {
  unsigned a, b, c, d, features = 1u << CK_LEVEL_GENERIC;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return features;
  const bool has_fma = c >> 12 & 1, has_f16c = c >> 29 & 1, has_xgetbv = c >> 27 & 1;
  if (!has_xgetbv) return features;
  const unsigned state = enabled_state();
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return features;
  const unsigned leaves = a, b7 = b, c7 = c, d7 = d;
  if ((state & 0x6) != 0x6 || !(b7 >> 5 & 1) || !has_fma || !has_f16c) return features;
  features |= 1u << CK_LEVEL_AVX2;
  const bool has_avx512 = (b7 >> 16 & 1) && (b7 >> 17 & 1) && (b7 >> 30 & 1) && (b7 >> 31 & 1);
  if ((state & 0xe6) != 0xe6 || !has_avx512) return features;
  features |= 1u << CK_LEVEL_AVX512;
  unsigned a71 = 0;
  if (leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) a71 = a;
  if (!(a71 >> 5 & 1) || !(c7 >> 11 & 1)) return features;
  features |= 1u << CK_LEVEL_AVX512BF16;
  if (has_tiles(state, d7)) features |= 1u << CK_LEVEL_AMX;
  return features;
}
#elif defined(__aarch64__)
static unsigned detect(void) { return 1u << CK_LEVEL_GENERIC | 1u << CK_LEVEL_NEON; }
#else
static unsigned detect(void) { return 1u << CK_LEVEL_GENERIC; }
#endif

static unsigned detected;
static pthread_once_t detection = PTHREAD_ONCE_INIT;
static void detect_once(void) { detected = detect(); }

bool ck_level_available(enum ck_level level) {
  pthread_once(&detection, detect_once);
  return (unsigned)level < CK_LEVEL_COUNT && (detected >> level & 1);
}

enum ck_level ck_level_best(void) {
  static const enum ck_level order[] = {
#ifndef GYRE_EMULATED_TILES
      CK_LEVEL_AMX,
#endif
      CK_LEVEL_AVX512BF16, CK_LEVEL_AVX512, CK_LEVEL_AVX2, CK_LEVEL_NEON};
  for (size_t i = 0; i < sizeof order / sizeof *order; i++)
    if (ck_level_available(order[i])) return order[i];
  return CK_LEVEL_GENERIC;
}

const char *ck_level_name(enum ck_level level) {
  static const char *const names[CK_LEVEL_COUNT] = {"generic",    "avx2", "avx512",
                                                    "avx512bf16", "amx",  "neon"};
  return (unsigned)level < CK_LEVEL_COUNT ? names[level] : "unknown";
}
