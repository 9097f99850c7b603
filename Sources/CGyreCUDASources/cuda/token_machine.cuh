// What one token's kernel asks of the machine: copies that bypass registers, loads past the first-level
// cache, barriers of a block's computing warps and of the grid.
#pragma once
#include "gyre_cuda_token_args.h"
#include "prelude.cuh"

#define WARPS (GYRE_TOKEN_THREADS / 32)
// Copies by the copy engine (sm_90); TOKEN_PORTABLE compiles the other way for a comparison.
#if __CUDA_ARCH__ >= 900 && !defined(TOKEN_PORTABLE)
#define COPY_ENGINE 1
#else
#define COPY_ENGINE 0
#endif

// All computing threads.
GYRE_DEVICE void block_barrier() {
  asm volatile("bar.sync 1, %0;" ::"n"(GYRE_TOKEN_THREADS) : "memory");
}

GYRE_DEVICE unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

// MARK: - Stages of the ring

GYRE_DEVICE void stage_initialize(unsigned long *full, unsigned long *empty) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(full)),
               "r"(COPY_ENGINE ? 1 : 32)
               : "memory");
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(empty)), "r"(WARPS)
               : "memory");
#if COPY_ENGINE
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
// Until the barrier's phase `parity` is over.
GYRE_DEVICE void stage_await(unsigned long *barrier, unsigned parity) {
  unsigned at = shared_address(barrier), done;
  do {
    asm volatile(
        "{ .reg .pred p;\n"
#if COPY_ENGINE
        "mbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n"
#else
        "mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n"
#endif
        "selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(at), "r"(parity)
        : "memory");
  } while (!done);
}
GYRE_DEVICE void stage_release(unsigned long *empty) {
  asm volatile("{ .reg .b64 t; mbarrier.arrive.shared.b64 t, [%0]; }" ::"r"(shared_address(empty))
               : "memory");
}
// By the copying warp: `bytes` in all (a multiple of 16) will come in the copies after this.
GYRE_DEVICE void stage_expect(unsigned long *full, int bytes, int lane) {
#if COPY_ENGINE
  if (lane == 0)
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(full)),
                 "r"(bytes)
                 : "memory");
#endif
}
// What is read once a token stays out of the way of what is read more often.
GYRE_DEVICE void stage_copy(char *to, const char *from, int bytes, unsigned long *full, int lane) {
#if COPY_ENGINE
  if (lane != 0) return;
  unsigned long policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(full)), "l"(policy)
      : "memory");
#else
  for (int i = lane * 16; i < bytes; i += 512)
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(shared_address(to + i)),
                 "l"(from + i)
                 : "memory");
#endif
}
GYRE_DEVICE void stage_end(unsigned long *full) {
#if !COPY_ENGINE
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(full))
               : "memory");
#endif
}

// MARK: - Words between warps of a block

GYRE_DEVICE int word_read(const void *p) {
  int x;
  asm volatile("ld.acquire.cta.shared.s32 %0, [%1];" : "=r"(x) : "r"(shared_address(p)) : "memory");
  return x;
}
GYRE_DEVICE void word_write(void *p, int x) {
  asm volatile("st.release.cta.shared.s32 [%0], %1;" ::"r"(shared_address(p)), "r"(x) : "memory");
}
GYRE_DEVICE void word_await(const int *p, int least) {
  while (word_read(p) < least) __nanosleep(20);
}

// MARK: - The grid

// What other blocks wrote in this launch: the second-level cache has it.
GYRE_DEVICE float fresh(const float *p) {
  float x;
  asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(x) : "l"(p));
  return x;
}
GYRE_DEVICE float4 fresh4(const float *p) {
  float4 x;
  asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "l"(p));
  return x;
}
GYRE_DEVICE float fresh(const gyre_token_vector &v, long b, long i) {
  return fresh(v.data + b * v.stride + i);
}
GYRE_DEVICE bool present(const gyre_token_vector &v) { return v.data != nullptr; }

// Brings the lines of a range that are this block's share into the second-level cache; by a warp.
GYRE_DEVICE void fetch_share(const char *p, long bytes, int lane) {
  long lines = (bytes + 127) / 128;
  for (long i = (long)lane * gridDim.x + blockIdx.x; i < lines; i += 32l * gridDim.x)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p + i * 128));
}

GYRE_DEVICE void arrive(unsigned *counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
// Until `target` blocks have arrived. A block that waits for seconds has lost the others: the kernel
// ends with an error rather than never.
GYRE_DEVICE void await(unsigned *counter, unsigned target) {
  unsigned seen;
  long start = clock64();
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    if (clock64() - start > 20000000000L) __trap();
  } while (seen < target);
}

// Sums over the computing threads in a fixed order, to all of them. `shared` holds 16 floats that are
// free again one barrier later.
GYRE_DEVICE float team_sum(float x, float *shared) {
  x = warp_sum(x);
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
  block_barrier();
  float all = 0.f;
#pragma unroll
  for (int i = 0; i < WARPS; i += 4) {
    float4 y = *(const float4 *)(shared + i);
    all += (y.x + y.y) + (y.z + y.w);
  }
  return all;
}
