// The recurrence of block_scan.cu for blocks of any size: a thread block each, their vectors in shared memory.
#include "gyre_cuda_engine_args.h"
#include "prelude.cuh"

extern __shared__ float vectors[];  // two of `size`

GYRE_KERNEL block_scan_forward_large(const __grid_constant__ gyre_block_scan_args a) {
  const long n = a.size, b = blockIdx.x / a.blocks, state = blockIdx.x * n;
  float *h = vectors, *next = vectors + n;
  for (long i = threadIdx.x; i < n; i += blockDim.x) h[i] = load_or(a.h0, state + i, 0.f);
  for (long t = 0; t < a.tokens; t++) {
    const bool starts = a.reset && a.reset[b * a.tokens + t];
    const long row = (b * a.tokens + t) * a.blocks + blockIdx.x % a.blocks;
    __syncthreads();
    for (long i = threadIdx.x; i < n; i += blockDim.x) {
      float sum = load(a.u, row * n + i);
      for (long j = 0; j < n && !starts; j++) sum += load(a.A, (row * n + j) * n + i) * h[j];
      next[i] = sum;
      store(a.h, row * n + i, sum);
    }
    float *other = h;
    h = next, next = other;
  }
  // A thread reads what it wrote itself.
  for (long i = threadIdx.x; i < n; i += blockDim.x) store(a.h_final, state + i, h[i]);
}

// A warp a row of A.
GYRE_KERNEL block_scan_backward_large(const __grid_constant__ gyre_block_scan_args a) {
  const long n = a.size, b = blockIdx.x / a.blocks, state = blockIdx.x * n;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  float *carry = vectors, *slope = vectors + n;
  for (long i = threadIdx.x; i < n; i += blockDim.x) carry[i] = load_or(a.dh_final, state + i, 0.f);
  for (long t = a.tokens - 1; t >= 0; t--) {
    const bool starts = a.reset && a.reset[b * a.tokens + t];
    const long row = (b * a.tokens + t) * a.blocks + blockIdx.x % a.blocks;
    __syncthreads();
    for (long i = threadIdx.x; i < n; i += blockDim.x) {
      slope[i] = load(a.dh, row * n + i) + carry[i];
      store(a.du, row * n + i, slope[i]);
    }
    __syncthreads();
    for (long j = warp; j < n; j += warps) {
      const float before = starts  ? 0.f
                           : t > 0 ? load(a.h, (row - a.blocks) * n + j)
                                   : load_or(a.h0, state + j, 0.f);
      float sum = 0.f;
      for (long i = lane; i < n; i += 32) {
        sum += load(a.A, (row * n + j) * n + i) * slope[i];
        store(a.dA, (row * n + j) * n + i, slope[i] * before);
      }
      sum = warp_sum(sum);
      if (lane == 0) carry[j] = starts ? 0.f : sum;
    }
  }
  __syncthreads();
  if (!present(a.dh0)) return;
  for (long i = threadIdx.x; i < n; i += blockDim.x) store(a.dh0, state + i, carry[i]);
}
