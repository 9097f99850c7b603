// RWKV-6's bonus around linear attention by chunks:
//
//     yₜ = s Sₜ₋₁ᵀ qₜ + s (qₜ · (u ∘ kₜ)) vₜ
//
// Sₜ₋₁ is what a query one token earlier reads, so the chunks' kernels get queries moved on by one token
// (zeros where a document or the sequence ends), and these kernels bring their results back and add the
// token's own term. The first token reads the initial state here. bfloat16; K, V multiples of 8.
#include "prelude.cuh"
#include "gyre_cuda_engine_args.h"

struct Bonus {
  long at, token;  // the token's head among all, the token
  bool is_open;    // whether the token before it belongs to the same document
};
GYRE_DEVICE Bonus place(const gyre_bonus_args &a, long row, long t, long h) {
  long token = row * a.tokens + t;
  return {token * a.heads + h, token, t > 0 && !(a.reset && a.reset[token])};
}
GYRE_DEVICE bool reads_state(const gyre_bonus_args &a, long row) {
  return present(a.state) && !(a.reset && a.reset[row * a.tokens]);
}
// Sums over eight neighbouring lanes.
GYRE_DEVICE float octet_sum(float x) {
#pragma unroll
  for (int o = 1; o < 8; o *= 2) x += __shfl_xor_sync(~0u, x, o);
  return x;
}

// out[t] = x[t + 1], 0 where token t + 1 begins a document or the sequence has ended.
GYRE_KERNEL __launch_bounds__(256) bonus_shift(const __grid_constant__ gyre_shift_args a) {
  long pieces = a.columns / 8, count = a.batch * a.tokens * pieces;
  const uint4 *x = (const uint4 *)a.x;
  uint4 *out = (uint4 *)a.out;
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < count;
       i += (long)gridDim.x * blockDim.x) {
    long token = i / pieces;
    bool is_end = (token + 1) % a.tokens == 0 || (a.reset && a.reset[token + 1]);
    out[i] = is_end ? make_uint4(0, 0, 0, 0) : x[i + pieces];
  }
}

// y from what the moved queries read; eight lanes a token and head.
GYRE_KERNEL __launch_bounds__(256) bonus_forward(const __grid_constant__ gyre_bonus_args a) {
  const int lane = threadIdx.x & 7;
  const long K = a.key_size, V = a.value_size, count = a.batch * a.tokens * a.heads;
  long i = ((long)blockIdx.x * blockDim.x + threadIdx.x) >> 3;
  const bool is_inside = i < count;
  if (!is_inside) i = 0;
  const long h = i % a.heads, token = i / a.heads, row = token / a.tokens;
  const Bonus b = place(a, row, token % a.tokens, h);
  float own = 0.f;
  for (long k0 = lane * 8; k0 < K; k0 += 64) {
    float q[8], k[8], u[8];
    get8<true>(a.q, b.at * K + k0, q);
    get8<true>(a.k, b.at * K + k0, k);
    load8(a.u, h * K + k0, K * a.heads, is_wide(a.u), u);
#pragma unroll
    for (int j = 0; j < 8; j++) own += q[j] * u[j] * k[j];
  }
  own = octet_sum(own) * a.scale;
  if (!is_inside) return;
  const bool reads = token % a.tokens == 0 && reads_state(a, row);
  for (long v0 = lane * 8; v0 < V; v0 += 64) {
    float v[8], y[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
    get8<true>(a.v, b.at * V + v0, v);
    if (b.is_open) get8<true>(a.o, (b.at - a.heads) * V + v0, y);
#pragma unroll
    for (int j = 0; j < 8; j++) y[j] += own * v[j];
    if (reads)
      for (long k = 0; k < K; k++) {
        float s[8], q = a.scale * load(a.q, b.at * K + k);
        load8(a.state, ((row * a.heads + h) * K + k) * V + v0, s);
#pragma unroll
        for (int j = 0; j < 8; j++) y[j] += q * s[j];
      }
    put8<true>(a.y, b.at * V + v0, y);
  }
}

// Gradients: `dq` from that of the moved queries in `o`, `dk` and `dv` in place, a share of du, and what
// the first token's query did with the initial state. Grid (splits, B·H); K at most 128.
GYRE_KERNEL __launch_bounds__(256) bonus_backward(const __grid_constant__ gyre_bonus_args a) {
  __shared__ float share[32 * 128];
  __shared__ float first[128];
  const int lane = threadIdx.x & 7, group = threadIdx.x >> 3;
  const long K = a.key_size, V = a.value_size, row = blockIdx.y / a.heads, h = blockIdx.y % a.heads;
  const long span = (a.tokens + gridDim.x - 1) / gridDim.x, begin = blockIdx.x * span,
             end = begin + span < a.tokens ? begin + span : a.tokens;
  const bool reads = begin == 0 && reads_state(a, row);
  if (reads) {
    const long at = place(a, row, 0, h).at;
    for (long k = threadIdx.x >> 5; k < K; k += 8) {
      const float q = a.scale * load(a.q, at * K + k);
      float sum = 0.f;
      for (long v = threadIdx.x & 31; v < V; v += 32) {
        const long i = (blockIdx.y * K + k) * V + v;
        const float dy = load(a.dy, at * V + v);
        sum += load(a.state, i) * dy;
        if (a.dstate) a.dstate[i] += q * dy;
      }
      sum = warp_sum(sum);
      if ((threadIdx.x & 31) == 0) first[k] = a.scale * sum;
    }
  }
  __syncthreads();
  float du[2][8];
#pragma unroll
  for (int j = 0; j < 8; j++) du[0][j] = du[1][j] = 0.f;
  for (long t0 = begin; t0 < end; t0 += 32) {
    const bool is_inside = t0 + group < end;
    const long t = is_inside ? t0 + group : begin;
    const Bonus b = place(a, row, t, h);
    float slope = 0.f, own = 0.f;
    for (long v0 = lane * 8; v0 < V; v0 += 64) {
      float v[8], dy[8];
      get8<true>(a.v, b.at * V + v0, v);
      get8<true>(a.dy, b.at * V + v0, dy);
#pragma unroll
      for (int j = 0; j < 8; j++) slope += v[j] * dy[j];
    }
    slope = octet_sum(slope) * a.scale;
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const long k0 = lane * 8 + n * 64;
      if (k0 >= K || !is_inside) continue;
      float q[8], k[8], u[8], dk[8], dq[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
      get8<true>(a.q, b.at * K + k0, q);
      get8<true>(a.k, b.at * K + k0, k);
      get8<true>(a.dk, b.at * K + k0, dk);
      if (b.is_open) get8<true>(a.o, (b.at - a.heads) * K + k0, dq);
      load8(a.u, h * K + k0, K * a.heads, is_wide(a.u), u);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const float both = q[j] * k[j];
        own += both * u[j];
        du[n][j] += slope * both;
        dq[j] += slope * u[j] * k[j];
        dk[j] += slope * u[j] * q[j];
        if (reads && t == 0) dq[j] += first[k0 + j];
      }
      put8<true>(a.dq, b.at * K + k0, dq);
      put8<true>(a.dk, b.at * K + k0, dk);
    }
    own = octet_sum(own) * a.scale;
    if (!is_inside) continue;
    for (long v0 = lane * 8; v0 < V; v0 += 64) {
      float dv[8], dy[8];
      get8<true>(a.dv, b.at * V + v0, dv);
      get8<true>(a.dy, b.at * V + v0, dy);
#pragma unroll
      for (int j = 0; j < 8; j++) dv[j] += own * dy[j];
      put8<true>(a.dv, b.at * V + v0, dv);
    }
  }
#pragma unroll
  for (int n = 0; n < 2; n++)
#pragma unroll
    for (int j = 0; j < 8; j++)
      if (lane * 8 + n * 64 < K) share[group * 128 + lane * 8 + n * 64 + j] = du[n][j];
  __syncthreads();
  for (long k = threadIdx.x; k < K; k += 256) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < 32; i++) sum += share[i * 128 + k];
    a.partial[(blockIdx.x * a.batch + row) * a.heads * K + h * K + k] = sum;
  }
}
