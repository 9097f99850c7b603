// h[t] = A[t] h[t-1] + u[t], A block-diagonal with blocks of the token's own. Lanes beside each other have a
// block's channels and see each other's h; inputs are read some tokens ahead. Blocks of more than 32
// channels take a thread block each.
#include "gyre_cuda_engine_args.h"
#include "prelude.cuh"

// Where a lane is: channel i of a block of N lanes, `lead` its first lane.
struct Place {
  long b, block;
  int i, lead;
  bool exists;
};
template <int N> GYRE_DEVICE Place place(const gyre_block_scan_args &a) {
  const int lane = threadIdx.x & 31, i = lane % N;
  const long n = (long)blockIdx.x * (32 / N) + lane / N;
  return {n / a.blocks, n % a.blocks, i, lane - i, i < a.size && n < a.batch * a.blocks};
}
GYRE_DEVICE long row_of(const gyre_block_scan_args &a, const Place &x, long t) {
  return (x.b * a.tokens + t) * a.blocks + x.block;
}

// Tokens first, first + step, ... of a lane as bits: N elements of A and two vectors.
template <int N> struct Stretch {
  enum { AHEAD = N <= 16 ? 64 / N : 2 };
  unsigned A[AHEAD][N], u[AHEAD], v[AHEAD];
  int reset[AHEAD];
};
// Forward u and column i of what becomes h, backward dh, h before and row i.
template <int N, bool BACK>
GYRE_DEVICE void read(const gyre_block_scan_args &a, const Place &x, long first, Stretch<N> &s) {
#pragma unroll
  for (int n = 0; n < Stretch<N>::AHEAD; n++) {
    const long t = BACK ? first - n : first + n;
    const bool is_there = x.exists && t >= 0 && t < a.tokens;
    const long row = row_of(a, x, t), own = row * a.size + x.i;
    s.reset[n] = is_there && a.reset ? a.reset[x.b * a.tokens + t] : 0;
    s.u[n] = is_there ? bits_at(BACK ? a.dh : a.u, own) : 0u;
    s.v[n] = BACK && is_there && t > 0 ? bits_at(a.h, own - a.blocks * a.size) : 0u;
#pragma unroll
    for (int j = 0; j < N; j++) {
      const long at = BACK ? own * a.size + j : (row * a.size + j) * a.size + x.i;
      s.A[n][j] = is_there && j < a.size ? bits_at(a.A, at) : 0u;
    }
  }
}

template <int N> GYRE_DEVICE void forward(const gyre_block_scan_args &a) {
  const Place x = place<N>(a);
  const long state = (x.b * a.blocks + x.block) * a.size + x.i;
  float h = x.exists ? load_or(a.h0, state, 0.f) : 0.f;
  Stretch<N> now, later;
  read<N, false>(a, x, 0, now);
  for (long first = 0; first < a.tokens; first += Stretch<N>::AHEAD) {
    read<N, false>(a, x, first + Stretch<N>::AHEAD, later);
#pragma unroll
    for (int n = 0; n < Stretch<N>::AHEAD; n++) {
      if (first + n >= a.tokens) break;
      if (now.reset[n]) h = 0.f;
      float next = number(a.u, now.u[n]);
#pragma unroll
      for (int j = 0; j < N; j++)
        next += number(a.A, now.A[n][j]) * __shfl_sync(~0u, h, x.lead + j);
      h = next;
      if (x.exists) store(a.h, row_of(a, x, first + n) * a.size + x.i, h);
    }
    now = later;
  }
  if (x.exists) store(a.h_final, state, h);
}

template <int N> GYRE_DEVICE void backward(const gyre_block_scan_args &a) {
  const Place x = place<N>(a);
  const long state = (x.b * a.blocks + x.block) * a.size + x.i;
  const float start = x.exists ? load_or(a.h0, state, 0.f) : 0.f;
  float carry = x.exists ? load_or(a.dh_final, state, 0.f) : 0.f;
  Stretch<N> now, later;
  read<N, true>(a, x, a.tokens - 1, now);
  for (long last = a.tokens - 1; last >= 0; last -= Stretch<N>::AHEAD) {
    read<N, true>(a, x, last - Stretch<N>::AHEAD, later);
#pragma unroll
    for (int n = 0; n < Stretch<N>::AHEAD; n++) {
      const long t = last - n;
      if (t < 0) break;
      const bool starts = now.reset[n];
      const float before = starts ? 0.f : t > 0 ? number(a.h, now.v[n]) : start;
      const float slope = number(a.dh, now.u[n]) + carry;
      const long row = row_of(a, x, t);
      if (x.exists) store(a.du, row * a.size + x.i, slope);
      carry = 0.f;
#pragma unroll
      for (int j = 0; j < N; j++) {
        // Lanes beside each other write elements beside each other.
        const float other = __shfl_sync(~0u, before, x.lead + j);
        if (x.exists && j < a.size) store(a.dA, (row * a.size + j) * a.size + x.i, slope * other);
        carry += number(a.A, now.A[n][j]) * __shfl_sync(~0u, slope, x.lead + j);
      }
      if (starts) carry = 0.f;
    }
    now = later;
  }
  if (x.exists && present(a.dh0)) store(a.dh0, state, carry);
}

#define KERNELS(N)                                                                            \
  GYRE_KERNEL block_scan_forward_##N(const __grid_constant__ gyre_block_scan_args a) {        \
    forward<N>(a);                                                                            \
  }                                                                                           \
  GYRE_KERNEL block_scan_backward_##N(const __grid_constant__ gyre_block_scan_args a) {       \
    backward<N>(a);                                                                           \
  }
KERNELS(4)
KERNELS(8)
KERNELS(16)
KERNELS(32)

// MARK: large blocks

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
