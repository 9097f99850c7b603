// What one token's kernel asks of the machine: copies that bypass registers, loads past the first-level
// cache, and a barrier over the grid.
#pragma once
#include "gyre_cuda_token_args.h"
#include "prelude.cuh"

// 16 bytes of global memory into shared memory, in the background; zeros where `valid` is false.
GYRE_DEVICE void copy_async(char *to, const char *from, bool valid) {
  unsigned target = (unsigned)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(target), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
GYRE_DEVICE void copies_end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most N groups of the thread are under way.
template <int N> GYRE_DEVICE void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// What other blocks wrote in this launch: the second-level cache has it.
GYRE_DEVICE float fresh(const float *p) {
  float x;
  asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(x) : "l"(p));
  return x;
}
GYRE_DEVICE float fresh(const gyre_token_vector &v, long b, long i) {
  return fresh(v.data + b * v.stride + i);
}
GYRE_DEVICE bool present(const gyre_token_vector &v) { return v.data != nullptr; }

// Brings the lines of a range that are this block's share into the second-level cache.
GYRE_DEVICE void fetch_share(const char *p, long bytes) {
  long lines = (bytes + 127) / 128;
  for (long i = (long)threadIdx.x * gridDim.x + blockIdx.x; i < lines;
       i += (long)GYRE_TOKEN_THREADS * gridDim.x)
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
