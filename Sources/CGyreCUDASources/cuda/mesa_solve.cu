// MesaNet's solutions: (H[t] + diag ridge) x[t] = b[t] at every token by conjugate gradients from zero.
// H lies in registers: lanes stand in rows and columns, each with 8 rows and some columns, so that a product
// reads few numbers from shared memory and adds up over few lanes. A block walks one chunk of one head, so
// that chunks fill the device; with keys up to 64 channels it is a warp that never waits for another. A
// solution ends where a further step is lost in rounding.
// Variants: SIZE=32,64,96,128
#include "gyre_cuda_engine_args.h"
#include "prelude.cuh"

enum {
  THREADS = SIZE == 64 ? 32 : SIZE,
  WARPS = THREADS / 32,
  ACROSS = SIZE == 64 ? 4 : 8,  // lanes of a row
  ROWS = 8,                     // of H in a lane
  COLUMNS = SIZE / ACROSS,      // fours of them, every 4 ACROSS
  OWN = ROWS / ACROSS,          // rows whose numbers a lane keeps
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

// Half of N sums goes to the lane beside, whose other half comes; at the end a lane has its own rows' sums.
template <int N> GYRE_DEVICE void add_across(float *sums, int lane, int bit) {
  if constexpr (N > OWN) {
    const bool is_upper = lane & bit;
#pragma unroll
    for (int n = 0; n < N / 2; n++) {
      const float sent = is_upper ? sums[n] : sums[n + N / 2];
      const float kept = is_upper ? sums[n + N / 2] : sums[n];
      sums[n] = kept + __shfl_xor_sync(~0u, sent, bit);
    }
    add_across<N / 2>(sums, lane, 2 * bit);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, (SIZE == 32 ? 24 : 12) / WARPS)
mesa_solve(const __grid_constant__ gyre_mesa_args a) {
  __shared__ __align__(16) float key[SIZE], point[SIZE];
  __shared__ float parts[2][WARPS];
  const long unit = blockIdx.x, b = unit / a.heads, head = unit % a.heads;
  const long first = blockIdx.y * a.chunk, end = min(first + a.chunk, a.tokens);
  const int K = (int)a.keys, lane = threadIdx.x & 31;
  const int top = threadIdx.x / ACROSS * ROWS, left = threadIdx.x % ACROSS * 4;
  // Of the rows below `top` those that are left after add_across.
  int own = top;
#pragma unroll
  for (int bit = 1, half = ROWS / 2; bit < ACROSS; bit *= 2, half /= 2) own += lane & bit ? half : 0;

  // From `states`, or for the first chunk H0 or zero.
  float H[ROWS][COLUMNS], ridge[OWN];
  {
    const float *from = a.H0 ? a.H0 + unit * K * K : nullptr;
    if (blockIdx.y > 0 || a.keeps_first)
      from = a.states + (unit * a.chunks + blockIdx.y) * K * K;
#pragma unroll
    for (int n = 0; n < ROWS; n++)
#pragma unroll
      for (int j = 0; j < COLUMNS; j++) {
        const int row = top + n, column = left + j / 4 * 4 * ACROSS + j % 4;
        H[n][j] = from && row < K && column < K ? from[row * K + column] : 0.f;
      }
#pragma unroll
    for (int n = 0; n < OWN; n++) ridge[n] = own + n < K ? load(a.ridge, head * K + own + n) : 1.f;
  }

  for (long t = first; t < end; t++) {
    const long at = (b * a.tokens + t) * a.heads + head;
    const bool starts = a.reset && a.reset[b * a.tokens + t];
    const float decay = starts ? 0.f : expf(load(a.g, at)), beta = load(a.beta, at);
    float x[OWN], r[OWN], p[OWN], mine = 0.f;
#pragma unroll
    for (int n = 0; n < OWN; n++) {
      key[own + n] = own + n < K ? load(a.k, at * K + own + n) : 0.f;
      x[n] = 0.f;
      r[n] = p[n] = own + n < K ? load(a.b, at * K + own + n) : 0.f;
      mine += r[n] * r[n];
    }
    together();
#pragma unroll
    for (int n = 0; n < ROWS; n++) {
      const float weighted = beta * key[top + n];
#pragma unroll
      for (int j = 0; j < COLUMNS; j += 4) {
        const float4 k = *(const float4 *)&key[left + j * ACROSS];
        H[n][j] = decay * H[n][j] + weighted * k.x;
        H[n][j + 1] = decay * H[n][j + 1] + weighted * k.y;
        H[n][j + 2] = decay * H[n][j + 2] + weighted * k.z;
        H[n][j + 3] = decay * H[n][j + 3] + weighted * k.w;
      }
    }
    float size = total(mine, parts[1]);
    const float enough = 1e-16f * size;
    for (int step = 0; step < a.steps && !(size <= enough); step++) {
#pragma unroll
      for (int n = 0; n < OWN; n++) point[own + n] = p[n];
      together();
      float image[ROWS];
#pragma unroll
      for (int n = 0; n < ROWS; n++) image[n] = 0.f;
#pragma unroll
      for (int j = 0; j < COLUMNS; j += 4) {
        const float4 v = *(const float4 *)&point[left + j * ACROSS];
#pragma unroll
        for (int n = 0; n < ROWS; n++) image[n] += H[n][j] * v.x;
#pragma unroll
        for (int n = 0; n < ROWS; n++) image[n] += H[n][j + 1] * v.y;
#pragma unroll
        for (int n = 0; n < ROWS; n++) image[n] += H[n][j + 2] * v.z;
#pragma unroll
        for (int n = 0; n < ROWS; n++) image[n] += H[n][j + 3] * v.w;
      }
      add_across<ROWS>(image, lane, 1);
      mine = 0.f;
#pragma unroll
      for (int n = 0; n < OWN; n++) {
        image[n] += ridge[n] * p[n];
        mine += p[n] * image[n];
      }
      const float alpha = __fdividef(size, total(mine, parts[0]) + a.epsilon);
      mine = 0.f;
#pragma unroll
      for (int n = 0; n < OWN; n++) {
        x[n] += alpha * p[n];
        r[n] -= alpha * image[n];
        mine += r[n] * r[n];
      }
      const float next = total(mine, parts[1]);
      const float ratio = __fdividef(next, size + a.epsilon);
#pragma unroll
      for (int n = 0; n < OWN; n++) p[n] = r[n] + ratio * p[n];
      size = next;
    }
#pragma unroll
    for (int n = 0; n < OWN; n++)
      if (own + n < K) store(a.x, at * K + own + n, x[n]);
    together();
  }
  if (!a.H || blockIdx.y + 1 < a.chunks) return;
#pragma unroll
  for (int n = 0; n < ROWS; n++)
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
      const int row = top + n, column = left + j / 4 * 4 * ACROSS + j % 4;
      if (row < K && column < K) a.H[(unit * K + row) * K + column] = H[n][j];
    }
}
