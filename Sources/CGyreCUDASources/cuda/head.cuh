// The layout of recurrences with a matrix state a head, walked token by token: a block of 256 holds 16
// columns of one head's state, 16 lanes a column; a lane has rows i * 16 + lane. Columns are
// independent but for sums over them in the backward pass, which go through shared memory, in one order.
#pragma once
#include "gyre_cuda_engine_args.h"
#include "prelude.cuh"

#ifndef LOG_ROWS
#define LOG_ROWS 2
#endif
#define ROWS (1 << LOG_ROWS)  // rows of a lane: K up to 16 * ROWS
#define INTERVAL GYRE_HEAD_INTERVAL

struct Head {
  long b, h, tile, tiles, row, column;
  int lane;
  bool exists;
  GYRE_DEVICE Head(const gyre_head_args &a) {
    lane = threadIdx.x & 15;
    tiles = (a.value_size + GYRE_HEAD_COLUMNS - 1) / GYRE_HEAD_COLUMNS;
    tile = blockIdx.x % tiles;
    row = blockIdx.x / tiles;
    b = row / a.heads;
    h = row % a.heads;
    column = tile * GYRE_HEAD_COLUMNS + (threadIdx.x >> 4);
    exists = column < a.value_size;
  }
  GYRE_DEVICE bool is_first() const { return tile == 0 && threadIdx.x < 16; }
  GYRE_DEVICE long key(const gyre_head_args &a, long t) const {
    return ((b * a.tokens + t) * a.key_heads + h / (a.heads / a.key_heads)) * a.key_size;
  }
  GYRE_DEVICE long token(const gyre_head_args &a, long t) const {
    return (b * a.tokens + t) * a.heads + h;
  }
  GYRE_DEVICE bool is_reset(const gyre_head_args &a, long t) const {
    return a.reset && a.reset[b * a.tokens + t];
  }
  GYRE_DEVICE void load_rows(
      const gyre_head_args &a, const gyre_array &x, long base, float (&out)[ROWS]) const {
    if (x.dtype == GYRE_F32) {
      const float *from = (const float *)x.data + base;
#pragma unroll
      for (int i = 0; i < ROWS; i++)
        out[i] = i * 16 + lane < a.key_size ? from[i * 16 + lane] : 0.f;
      return;
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
      int k = i * 16 + lane;
      out[i] = k < a.key_size ? load(x, base + k) : 0.f;
    }
  }
  // e^g of each row.
  GYRE_DEVICE void load_decay(const gyre_head_args &a, long t, float (&g)[ROWS]) const {
    if (a.decay == GYRE_DECAY_VECTOR) {
      load_rows(a, a.g, token(a, t) * a.key_size, g);
      return;
    }
    float one = a.decay == GYRE_DECAY_CONSTANT ? load(a.g, h)
                : a.decay == GYRE_DECAY_SCALAR ? load(a.g, token(a, t)) : 0.f;
#pragma unroll
    for (int i = 0; i < ROWS; i++) g[i] = one;
  }
  // The state [B, H, K, V].
  GYRE_DEVICE void load_state(const gyre_head_args &a, const gyre_array &x, float (&S)[ROWS]) const {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
      int k = i * 16 + lane;
      S[i] = exists && k < a.key_size && present(x)
                 ? load(x, (row * a.key_size + k) * a.value_size + column) : 0.f;
    }
  }
  GYRE_DEVICE void store_state(
      const gyre_head_args &a, const gyre_array &x, const float (&S)[ROWS]) const {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
      int k = i * 16 + lane;
      if (exists && k < a.key_size) store(x, (row * a.key_size + k) * a.value_size + column, S[i]);
    }
  }
  GYRE_DEVICE float *slot(const gyre_head_args &a, long t) const {
    return a.kept + (row * a.slots + t / INTERVAL) * a.key_size * a.value_size + column;
  }
  GYRE_DEVICE void keep(const gyre_head_args &a, long t, const float (&S)[ROWS]) const {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
      int k = i * 16 + lane;
      if (exists && k < a.key_size) slot(a, t)[(long)k * a.value_size] = S[i];
    }
  }
  GYRE_DEVICE void recall(const gyre_head_args &a, long t, float (&S)[ROWS]) const {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
      int k = i * 16 + lane;
      S[i] = exists && k < a.key_size ? slot(a, t)[(long)k * a.value_size] : 0.f;
    }
  }
};

// Σ over rows of a column, to all of its lanes.
GYRE_DEVICE float column_sum16(float x) {
#pragma unroll
  for (int o = 8; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
  return x;
}
GYRE_DEVICE float dot(const float (&x)[ROWS], const float (&y)[ROWS]) {
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < ROWS; i++) sum += x[i] * y[i];
  return column_sum16(sum);
}

// Σ over the columns of a block of some vectors over K and a scalar (of lane 0 of each column), to
// out[vector * K + k] and scalar_out[0]. Two halves of `shared` take turns, so one barrier a call.
template <int N>
GYRE_DEVICE void sum_over_columns(
    const gyre_head_args &a, const Head &head, const float (&x)[N][ROWS], float scalar,
    float *shared, int turn, float *out, float *scalar_out) {
  long size = N * a.key_size + 1;
  float *mine = shared + (turn * 8 + (threadIdx.x >> 5)) * size;
#pragma unroll
  for (int n = 0; n < N; n++) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
      float sum = x[n][i] + __shfl_xor_sync(~0u, x[n][i], 16);
      int k = i * 16 + head.lane;
      if ((threadIdx.x & 16) == 0 && k < a.key_size) mine[n * a.key_size + k] = sum;
    }
  }
  float sum = scalar + __shfl_xor_sync(~0u, scalar, 16);
  if ((threadIdx.x & 31) == 0) mine[size - 1] = sum;
  __syncthreads();
  const float *all = shared + turn * 8 * size;
  for (long n = threadIdx.x; n < size; n += blockDim.x) {
    float total = 0.f;
#pragma unroll
    for (int w = 0; w < 8; w++) total += all[w * size + n];
    if (n < size - 1) out[n] = total;
    else if (scalar_out) scalar_out[0] = total;
  }
}
