// y = x W' + b for at most four rows of x: one token at a time. The weight's bytes bound it: a warp
// reads a row of W in 16-byte pieces, four in flight a lane; x comes from the first-level cache.
#include "prelude.cuh"

#define AHEAD 4

template <int M> GYRE_DEVICE void product(const gyre_gemv_args &a) {
  long warp = ((long)blockIdx.x * blockDim.x + threadIdx.x) >> 5;
  int lane = threadIdx.x & 31;
  for (long n = warp; n < a.n; n += (long)gridDim.x * blockDim.x >> 5) {
    float sum[M];
#pragma unroll
    for (int m = 0; m < M; m++) sum[m] = 0.f;
    for (long first = lane * 8; first < a.k; first += 256 * AHEAD) {
      float w[AHEAD][8];
#pragma unroll
      for (int j = 0; j < AHEAD; j++)
        if (first + 256 * j < a.k) load8(a.w, n * a.k + first + 256 * j, w[j]);
#pragma unroll
      for (int j = 0; j < AHEAD; j++) {
        if (first + 256 * j >= a.k) continue;
#pragma unroll
        for (int m = 0; m < M; m++) {
          float x[8];
          load8(a.x, m * a.k + first + 256 * j, x);
#pragma unroll
          for (int i = 0; i < 8; i++) sum[m] += x[i] * w[j][i];
        }
      }
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
      float total = warp_sum(sum[m]);
      if (lane == 0) store(a.y, m * a.n + n, total + load_or(a.bias, n, 0.f));
    }
  }
}

GYRE_KERNEL gemv(gyre_gemv_args a) {
  switch (a.m) {
    case 1: product<1>(a); break;
    case 2: product<2>(a); break;
    case 3: product<3>(a); break;
    default: product<4>(a);
  }
}
