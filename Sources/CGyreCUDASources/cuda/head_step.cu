// One token of linear attention or a delta rule: every state is read once and written once, into the same
// memory if asked. A block holds the K rows of some columns of one head's state; 2^LOG_LANES lanes of four
// columns lie beside each other, and each thread has rows of the state from its first in steps of the
// rows that a block holds at once. All rules are S' = D S + p A + k W for one token, with
// A = (D S)'k, W = beta (v - A) without p, or A = S'a, p = b, W = v, or no A and W = w v; so that
// S''q needs only sums over S, made together with A.
// Variants: LOG_LANES=3..5
#include "gyre_cuda_engine_args.h"
#include "prelude.cuh"

#ifndef LOG_LANES
#define LOG_LANES 5
#endif
#define LANES (1 << LOG_LANES)
#define STEP_ROWS (256 / LANES)
#define COLUMNS (4 * LANES)

struct Sums {
  float4 a, y;
};

GYRE_DEVICE void add(float4 &x, const float4 &y) {
  x.x += y.x, x.y += y.y, x.z += y.z, x.w += y.w;
}
GYRE_DEVICE void add_times(float4 &x, float s, const float4 &y) {
  x.x += s * y.x, x.y += s * y.y, x.z += s * y.z, x.w += s * y.w;
}
GYRE_DEVICE float4 across(const float4 &x, int offset) {
  return make_float4(
      __shfl_xor_sync(~0u, x.x, offset), __shfl_xor_sync(~0u, x.y, offset),
      __shfl_xor_sync(~0u, x.z, offset), __shfl_xor_sync(~0u, x.w, offset));
}
GYRE_DEVICE float sum_of_warp(float x) {
#pragma unroll
  for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
  return x;
}

// K up to N * STEP_ROWS. Shared: what is read of A and of y, the decay, what A and W write, [5][K].
template <int N> GYRE_DEVICE void step(const gyre_head_args &a) {
  extern __shared__ float rows[];
  __shared__ Sums warps[8][LANES];
  __shared__ float scalars[8][3];
  const int K = (int)a.key_size;
  const long V = a.value_size, parts = V / COLUMNS;
  const long row = blockIdx.x / parts, part = blockIdx.x % parts;
  const long b = row / a.heads, h = row % a.heads;
  const long key = (b * a.key_heads + h / (a.heads / a.key_heads)) * K;
  const int lane = threadIdx.x & (LANES - 1), first = threadIdx.x >> LOG_LANES;
  const bool fresh = !present(a.state) || (a.reset && a.reset[b]);
  const float4 *state = (const float4 *)a.state.data + (row * K * V + part * COLUMNS) / 4;
  float4 S[N];
#pragma unroll
  for (int i = 0; i < N; i++) {
    int k = i * STEP_ROWS + first;
    S[i] = fresh || k >= K ? make_float4(0.f, 0.f, 0.f, 0.f) : state[k * (V / 4) + lane];
  }

  const bool has_beta = present(a.beta), is_general = present(a.a), has_bonus = present(a.bonus);
  float before = fresh ? 0.f : load_or(a.max_state, row, 0.f), top = before, weight = 1.f, shift = 0.f;
  const float one = a.decay == GYRE_DECAY_CONSTANT ? load(a.g, h)
                    : a.decay == GYRE_DECAY_SCALAR ? load(a.g, row) : 0.f;
  if (a.divisor == GYRE_DIVISOR_EXPONENTIAL) {
    float gate = load(a.input_gate, row);
    top = fmaxf(one + before, gate);
    shift = before - top;
    weight = expf(gate - top);
  }
  float *read_a = rows, *read_y = rows + K, *decay = rows + 2 * K, *write_a = rows + 3 * K;
  float *write_k = rows + 4 * K;
  float qk = 0.f, qb = 0.f, amount = 0.f;
  for (int k = threadIdx.x; k < K; k += 256) {
    float q = load(a.q, key + k), x = load(a.k, key + k);
    float d = expf((a.decay == GYRE_DECAY_VECTOR ? load(a.g, row * K + k) : one) + shift);
    float low = is_general ? load(a.b, row * K + k) : 0.f;
    float lifted = has_bonus ? load(a.bonus, h * K + k) * x : x;
    decay[k] = d;
    read_a[k] = has_beta ? d * x : is_general ? load(a.a, row * K + k) : 0.f;
    read_y[k] = has_bonus ? q : q * d;
    write_a[k] = low;
    write_k[k] = x;
    qk += q * lifted;
    qb += q * low;
    if (a.divisor) {
      float z = fresh ? 0.f : load_or(a.norm_state, row * K + k, 0.f), next = d * z + weight * x;
      amount += q * (has_bonus ? z + lifted : next);
      if (part == 0 && present(a.final_norm)) store(a.final_norm, row * K + k, next);
    }
  }
  qk = sum_of_warp(qk);
  qb = sum_of_warp(qb);
  amount = sum_of_warp(amount);
  const int warp = threadIdx.x >> 5;
  if ((threadIdx.x & 31) == 0) scalars[warp][0] = qk, scalars[warp][1] = qb, scalars[warp][2] = amount;
  if (part == 0 && threadIdx.x == 0 && present(a.final_max)) store(a.final_max, row, top);
  __syncthreads();

  Sums sums = {make_float4(0.f, 0.f, 0.f, 0.f), make_float4(0.f, 0.f, 0.f, 0.f)};
#pragma unroll
  for (int i = 0; i < N; i++) {
    int k = i * STEP_ROWS + first;
    if (k >= K) continue;
    add_times(sums.a, read_a[k], S[i]);
    add_times(sums.y, read_y[k], S[i]);
  }
#pragma unroll
  for (int o = LANES; o < 32; o <<= 1) {
    add(sums.a, across(sums.a, o));
    add(sums.y, across(sums.y, o));
  }
  if ((threadIdx.x & 31) < LANES) warps[warp][lane] = sums;
  __syncthreads();
  sums = warps[0][lane];
  qk = scalars[0][0], qb = scalars[0][1], amount = scalars[0][2];
#pragma unroll
  for (int w = 1; w < 8; w++) {
    add(sums.a, warps[w][lane].a);
    add(sums.y, warps[w][lane].y);
    qk += scalars[w][0], qb += scalars[w][1], amount += scalars[w][2];
  }

  const long column = row * V + part * COLUMNS + lane * 4;
  float4 v = make_float4(
      load(a.v, column), load(a.v, column + 1), load(a.v, column + 2), load(a.v, column + 3));
  float4 W = v;
  if (has_beta) {
    float beta = load(a.beta, row);
    add_times(W, -1.f, sums.a);
    W = make_float4(beta * W.x, beta * W.y, beta * W.z, beta * W.w);
  } else {
    W = make_float4(weight * v.x, weight * v.y, weight * v.z, weight * v.w);
  }
  float4 *final_state = (float4 *)a.final_state.data + (row * K * V + part * COLUMNS) / 4;
#pragma unroll
  for (int i = 0; i < N; i++) {
    int k = i * STEP_ROWS + first;
    if (k >= K) continue;
    float d = decay[k];
    float4 next = make_float4(d * S[i].x, d * S[i].y, d * S[i].z, d * S[i].w);
    if (is_general) add_times(next, write_a[k], sums.a);
    add_times(next, write_k[k], W);
    final_state[k * (V / 4) + lane] = next;
  }
  if (first) return;
  float4 y = sums.y;
  add_times(y, qk, has_bonus ? v : W);
  if (is_general) add_times(y, qb, sums.a);
  float scale = a.scale;
  if (a.divisor) {
    amount *= a.scale;
    float bound = a.divisor == GYRE_DIVISOR_FLOOR ? a.floor : expf(-top);
    float size = a.divisor == GYRE_DIVISOR_SUM ? amount : fmaxf(fabsf(amount), bound);
    scale /= size + a.epsilon;
  }
  store(a.y, column, scale * y.x);
  store(a.y, column + 1, scale * y.y);
  store(a.y, column + 2, scale * y.z);
  store(a.y, column + 3, scale * y.w);
}

extern "C" __global__ void __launch_bounds__(256, 4) head_step_4(gyre_head_args a) { step<4>(a); }
extern "C" __global__ void __launch_bounds__(256, 3) head_step_8(gyre_head_args a) { step<8>(a); }
extern "C" __global__ void __launch_bounds__(256, 2) head_step_16(gyre_head_args a) { step<16>(a); }
