// MesaNet's solutions: (H[t] + diag ridge) x[t] = b[t] at every token by conjugate gradients from zero.
// H lies in registers: a thread has one or two of its rows, or columns, as H is symmetric. A block walks
// one chunk of one head, so that chunks fill the device; with keys up to 64 channels it is a warp that
// never waits for another. A solution ends where a further step is lost in rounding.
// Variants: SIZE=32,64,96,128
#include "gyre_cuda_engine_args.h"
#include "prelude.cuh"

enum {
  THREADS = SIZE == 64 ? 32 : SIZE,
  ROWS = SIZE / THREADS,
  WARPS = THREADS / 32,
  SUMS = 4 / ROWS,  // that a row's product is made of
};

GYRE_DEVICE void together() {
  if (WARPS == 1) __syncwarp();
  else __syncthreads();
}
// The sum over the block, to every thread, past all reads of shared memory before it.
GYRE_DEVICE float total(float x, float (&part)[WARPS]) {
  if (WARPS == 1) {
    __syncwarp();
    return warp_sum(x);
  }
  x = warp_sum(x);
  if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = x;
  __syncthreads();
  x = 0.f;
#pragma unroll
  for (int w = 0; w < WARPS; w++) x += part[w];
  return x;
}

extern "C" __global__ void __launch_bounds__(THREADS, (SIZE == 32 ? 24 : 12) / WARPS)
mesa_solve(const __grid_constant__ gyre_mesa_args a) {
  __shared__ __align__(16) float key[SIZE], point[SIZE];
  __shared__ float parts[2][WARPS];
  const long unit = blockIdx.x, b = unit / a.heads, head = unit % a.heads;
  const long first = blockIdx.y * a.chunk, end = min(first + a.chunk, a.tokens);
  const int K = (int)a.keys, row = threadIdx.x * ROWS;

  // From `states`, or for the first chunk H0 or zero. Neighbours read neighbours.
  const bool has_state = blockIdx.y > 0 || a.keeps_first;
  float H[ROWS][SIZE], ridge[ROWS];
  {
    gyre_array from = a.H0;
    long start = unit * K * K;
    if (has_state) {
      from.data = a.states, from.dtype = GYRE_F32;
      start = (unit * a.chunks + blockIdx.y) * K * K;
    }
#pragma unroll
    for (int n = 0; n < ROWS; n++) {
      ridge[n] = row + n < K ? load(a.ridge, head * K + row + n) : 1.f;
#pragma unroll
      for (int j = 0; j < SIZE; j++)
        H[n][j] = row + n < K && j < K ? load_or(from, start + j * K + row + n, 0.f) : 0.f;
    }
  }

  for (long t = first; t < end; t++) {
    const long at = (b * a.tokens + t) * a.heads + head;
    const bool starts = a.reset && a.reset[b * a.tokens + t];
    const float decay = starts ? 0.f : expf(load(a.g, at)), beta = load(a.beta, at);
    float x[ROWS], r[ROWS], p[ROWS], weighted[ROWS], mine = 0.f;
#pragma unroll
    for (int n = 0; n < ROWS; n++) {
      const float k = row + n < K ? load(a.k, at * K + row + n) : 0.f;
      key[row + n] = k;
      weighted[n] = beta * k;
      x[n] = 0.f;
      r[n] = p[n] = row + n < K ? load(a.b, at * K + row + n) : 0.f;
      mine += r[n] * r[n];
    }
    together();
#pragma unroll
    for (int j = 0; j < SIZE; j += 4) {
      const float4 k = *(const float4 *)&key[j];
#pragma unroll
      for (int n = 0; n < ROWS; n++) {
        H[n][j] = decay * H[n][j] + weighted[n] * k.x;
        H[n][j + 1] = decay * H[n][j + 1] + weighted[n] * k.y;
        H[n][j + 2] = decay * H[n][j + 2] + weighted[n] * k.z;
        H[n][j + 3] = decay * H[n][j + 3] + weighted[n] * k.w;
      }
    }
    float size = total(mine, parts[1]);
    const float enough = 1e-16f * size;
    for (int step = 0; step < a.steps && !(size <= enough); step++) {
#pragma unroll
      for (int n = 0; n < ROWS; n++) point[row + n] = p[n];
      together();
      float sum[ROWS][SUMS], image[ROWS];
#pragma unroll
      for (int n = 0; n < ROWS; n++)
#pragma unroll
        for (int j = 0; j < SUMS; j++) sum[n][j] = 0.f;
#pragma unroll
      for (int j = 0; j < SIZE; j += 4) {
        const float4 v = *(const float4 *)&point[j];
#pragma unroll
        for (int n = 0; n < ROWS; n++) {
          sum[n][0] += H[n][j] * v.x;
          sum[n][1] += H[n][j + 1] * v.y;
          sum[n][2 % SUMS] += H[n][j + 2] * v.z;
          sum[n][3 % SUMS] += H[n][j + 3] * v.w;
        }
      }
      mine = 0.f;
#pragma unroll
      for (int n = 0; n < ROWS; n++) {
        image[n] = ridge[n] * p[n];
#pragma unroll
        for (int j = 0; j < SUMS; j++) image[n] += sum[n][j];
        mine += p[n] * image[n];
      }
      const float alpha = __fdividef(size, total(mine, parts[0]) + a.epsilon);
      mine = 0.f;
#pragma unroll
      for (int n = 0; n < ROWS; n++) {
        x[n] += alpha * p[n];
        r[n] -= alpha * image[n];
        mine += r[n] * r[n];
      }
      const float next = total(mine, parts[1]);
      const float ratio = __fdividef(next, size + a.epsilon);
#pragma unroll
      for (int n = 0; n < ROWS; n++) p[n] = r[n] + ratio * p[n];
      size = next;
    }
#pragma unroll
    for (int n = 0; n < ROWS; n++)
      if (row + n < K) store(a.x, at * K + row + n, x[n]);
    together();
  }
  if (!present(a.H) || blockIdx.y + 1 < a.chunks) return;
#pragma unroll
  for (int n = 0; n < ROWS; n++)
#pragma unroll
    for (int j = 0; j < SIZE; j++)
      if (row + n < K && j < K) store(a.H, (unit * K + j) * K + row + n, H[n][j]);
}
