// Sums and maxima. Every sum has one order whatever the schedule: partial sums go through memory,
// never through atomics.
#include "gyre_cuda_engine_args.h"
#include "prelude.cuh"

// One block a part of a row.
GYRE_KERNEL row_sum(gyre_row_sum_args a) {
  __shared__ float shared[32];
  for (long p = blockIdx.x; p < a.rows * a.splits; p += gridDim.x) {
    long r = p / a.splits, s = p % a.splits;
    long each = (a.columns + a.splits - 1) / a.splits;
    each = (each + 7) / 8 * 8;
    long first = s * each, last = first + each < a.columns ? first + each : a.columns;
    float sum = 0.f;
    for (long c = first + threadIdx.x; c < last; c += blockDim.x) {
      float x = load(a.x, r * a.columns + c);
      sum += a.squares ? x * x : x;
    }
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) store(a.out, p, sum);
  }
}

// One thread a column and part; neighbours read neighbours.
GYRE_KERNEL column_sum(gyre_column_sum_args a) {
  long c = (long)blockIdx.x * blockDim.x + threadIdx.x, s = blockIdx.y;
  if (c >= a.columns) return;
  long each = (a.rows + a.splits - 1) / a.splits;
  long first = s * each, last = first + each < a.rows ? first + each : a.rows;
  float sum[4] = {0.f, 0.f, 0.f, 0.f};
  long r = first;
  for (; r + 16 <= last; r += 16) {
    float x[16];
#pragma unroll
    for (int j = 0; j < 16; j++) x[j] = load(a.x, (r + j) * a.columns + c);
#pragma unroll
    for (int j = 0; j < 16; j++) sum[j & 3] += x[j];
  }
  for (; r < last; r++) sum[0] += load(a.x, r * a.columns + c);
  store(a.out, s * a.columns + c, (sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// One warp an element of the output; any axes.
GYRE_KERNEL sum_to(gyre_sum_to_args a) {
  long warp = ((long)blockIdx.x * blockDim.x + threadIdx.x) >> 5;
  int lane = threadIdx.x & 31;
  for (; warp < a.count; warp += (long)gridDim.x * blockDim.x >> 5) {
    long base = 0, rest = warp;
    for (int d = a.rank - 1; d >= 0; d--) {
      base += rest % a.kept_shape[d] * a.kept_stride[d];
      rest /= a.kept_shape[d];
    }
    float sum = 0.f;
    for (long i = lane; i < a.reduced; i += 32) {
      long at = base;
      rest = i;
      for (int d = a.rank - 1; d >= 0; d--) {
        at += rest % a.reduced_shape[d] * a.reduced_stride[d];
        rest /= a.reduced_shape[d];
      }
      sum += load(a.x, at);
    }
    sum = warp_sum(sum);
    if (lane == 0) store(a.out, warp, sum);
  }
}

// One block a row.
GYRE_KERNEL softmax(gyre_softmax_args a) {
  __shared__ float shared[32];
  for (long r = blockIdx.x; r < a.rows; r += gridDim.x) {
    long row = r * a.columns;
    float top = -INFINITY;
    for (long c = threadIdx.x; c < a.columns; c += blockDim.x) top = fmaxf(top, load(a.x, row + c));
    top = block_max(top, shared);
    float sum = 0.f;
    for (long c = threadIdx.x; c < a.columns; c += blockDim.x) sum += expf(load(a.x, row + c) - top);
    sum = block_sum(sum, shared);
    for (long c = threadIdx.x; c < a.columns; c += blockDim.x)
      store(a.y, row + c, expf(load(a.x, row + c) - top) / sum);
  }
}

GYRE_KERNEL softmax_backward(gyre_softmax_args a) {
  __shared__ float shared[32];
  for (long r = blockIdx.x; r < a.rows; r += gridDim.x) {
    long row = r * a.columns;
    float dot = 0.f;
    for (long c = threadIdx.x; c < a.columns; c += blockDim.x)
      dot += load(a.y, row + c) * load(a.dy, row + c);
    dot = block_sum(dot, shared);
    for (long c = threadIdx.x; c < a.columns; c += blockDim.x)
      store(a.dx, row + c, load(a.y, row + c) * (load(a.dy, row + c) - dot));
  }
}

// One block of 256 a row.
GYRE_KERNEL argmax(gyre_argmax_args a) {
  __shared__ float best_value[256];
  __shared__ long best_index[256];
  for (long r = blockIdx.x; r < a.rows; r += gridDim.x) {
    float best = -INFINITY;
    long index = 0x7fffffff;
    // Eight at a time, two of these under way.
    const bool wide = is_wide(a.x) && a.columns % 8 == 0;
    for (long c = threadIdx.x * 8; c < a.columns; c += blockDim.x * 16) {
      float x[2][8];
#pragma unroll
      for (int u = 0; u < 2; u++) {
        const long at = c + u * blockDim.x * 8;
        load8(a.x, r * a.columns + at, r * a.columns + a.columns, wide, x[u]);
      }
#pragma unroll
      for (int u = 0; u < 2; u++)
#pragma unroll
        for (int j = 0; j < 8; j++) {
          const long at = c + u * blockDim.x * 8 + j;
          if (at < a.columns && (x[u][j] > best || index == 0x7fffffff)) best = x[u][j], index = at;
        }
    }
    best_value[threadIdx.x] = best;
    best_index[threadIdx.x] = index;
    for (int o = 128; o; o >>= 1) {
      __syncthreads();
      if (threadIdx.x < o) {
        float other = best_value[threadIdx.x + o];
        long at = best_index[threadIdx.x + o];
        if (at != 0x7fffffff &&
            (other > best || (other == best && at < index) || index == 0x7fffffff)) {
          best_value[threadIdx.x] = best = other;
          best_index[threadIdx.x] = index = at;
        }
      }
    }
    if (threadIdx.x == 0) a.index[r] = index == 0x7fffffff ? 0 : (int)index;
    __syncthreads();
  }
}

// Part blockIdx.x of array blockIdx.y.
GYRE_KERNEL squares(gyre_squares_args a) {
  __shared__ float shared[32];
  const gyre_array &x = a.x[blockIdx.y];
  long count = a.count[blockIdx.y];
  bool wide = is_wide(x);
  float sum = 0.f;
  GYRE_EACH_EIGHT(i, count) {
    float v[8];
    load8(x, i, count, wide, v);
#pragma unroll
    for (int j = 0; j < 8; j++) sum += v[j] * v[j];
  }
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) a.partial[a.first + (long)blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

// One block.
GYRE_KERNEL total(gyre_total_args a) {
  __shared__ double shared[256];
  double sum = 0.;
  for (long i = threadIdx.x; i < a.count; i += 256) sum += a.x[i];
  shared[threadIdx.x] = sum;
  for (int o = 128; o; o >>= 1) {
    __syncthreads();
    if (threadIdx.x < o) shared[threadIdx.x] += shared[threadIdx.x + o];
  }
  if (threadIdx.x == 0) store(a.out, 0, (float)shared[0]);
}

// One warp a row.
GYRE_KERNEL row_dot(gyre_row_dot_args a) {
  long r = ((long)blockIdx.x * blockDim.x + threadIdx.x) >> 5;
  int lane = threadIdx.x & 31;
  if (r >= a.rows) return;
  float sum = 0.f;
  for (long c = lane; c < a.columns; c += 32)
    sum += load(a.x, r * a.columns + c) * load(a.y, r * a.columns + c);
  sum = warp_sum(sum);
  if (lane == 0) a.out[r] = sum;
}
