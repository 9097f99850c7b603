// One token of linear attention or a delta rule: every state is read once and written once, into the same
// memory if asked. A warp holds 4 * LANES columns of the K rows of one head's state, 2^LOG_LANES lanes of four
// columns beside each other and LINES of them below each other, so that it waits for nobody, or two or, where K is
// large, the four warps of a block hold a part of the rows each. All rules are
// S' = D S + p A + k W for one token, with A = (D S)'k, W = beta (v - A) without p, or A = S'a, p = b, W = v,
// or no A and W = w v; so that S''q needs only sums over S, made together with A.
// Variants: LOG_LANES=2..5
#include "gyre_cuda_engine_args.h"
#include "four.cuh"

#ifndef LOG_LANES
#define LOG_LANES 3
#endif
#define LANES (1 << LOG_LANES)
#define LINES (32 / LANES)
#define COLUMNS (4 * LANES)
#define WARPS 4

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

// States pass once: they are not to take the caches from what is read again.
GYRE_DEVICE float4 load_once(const float4 *p) {
  float4 v;
  asm volatile("ld.global.cs.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(p));
  return v;
}
GYRE_DEVICE void store_once(float4 *p, const float4 &v) {
  asm volatile("st.global.cs.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
               : "memory");
}

// What a row of the state is read and written with.
struct Rows {
  float *read_a, *read_y, *decay, *write_a, *write_k;
};
GYRE_DEVICE void four_of(const float *from, float (&x)[4]) {
  const float4 v = *(const float4 *)from;
  x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}

struct Sums {
  float4 a, y;
};

// K up to N * LINES * TEAM, TEAM 1, 2 or WARPS; row 4 ((n * TEAM + member) * LINES + line) + j of the state is element
// 4 n + j of a lane. Shared: of each team what A and y read, the decay, and what A and W write, [5][K up to a
// multiple of 4].
template <int N, int TEAM> GYRE_DEVICE void step(const gyre_head_args &a) {
  __shared__ Sums parts_of[TEAM][LANES];
  __shared__ float scalars[TEAM][3];
  extern __shared__ float4 shared[];
  const int K = (int)a.key_size, padded = (K + 3) & ~3, lane = threadIdx.x & 31;
  const int column_lane = lane & (LANES - 1), line = lane >> LOG_LANES;
  const long V = a.value_size;
  const unsigned parts = (unsigned)(V / COLUMNS), heads = (unsigned)a.heads;
  const int warp = threadIdx.x >> 5, member = warp % TEAM;
  const unsigned tile = TEAM > 1 ? blockIdx.x : blockIdx.x * WARPS + warp;
  if (tile >= (unsigned)a.batch * heads * parts) return;
  const unsigned row_index = tile / parts, part = tile % parts;
  const unsigned b = row_index / heads, h = row_index % heads;
  const long row = row_index, column = row * V + part * COLUMNS + column_lane * 4;
  const long key = (long)(b * (unsigned)a.key_heads + h / (heads / (unsigned)a.key_heads)) * K;
  const bool fresh = !present(a.state) || (a.reset && a.reset[b]);
  const long place = row * K * V + part * COLUMNS + column_lane * 4;
  const float4 *state = (const float4 *)((const float *)a.state.data + place);
  float4 S[N];
#pragma unroll
  for (int i = 0; i < N; i++) {
    const int k = 4 * ((i / 4 * TEAM + member) * LINES + line) + i % 4;
    S[i] = fresh || k >= K ? make_float4(0.f, 0.f, 0.f, 0.f) : load_once(state + k * (V / 4));
  }
  const Raw4<false> raw(a.v, column);

  const bool has_beta = present(a.beta), is_general = present(a.a), has_bonus = present(a.bonus);
  const float beta = has_beta ? load(a.beta, row) : 1.f;
  float before = fresh ? 0.f : load_or(a.max_state, row, 0.f), top = before, weight = 1.f, shift = 0.f;
  const float one = a.decay == GYRE_DECAY_CONSTANT ? load(a.g, h)
                    : a.decay == GYRE_DECAY_SCALAR ? load(a.g, row) : 0.f;
  if (a.divisor == GYRE_DIVISOR_EXPONENTIAL) {
    float gate = load(a.input_gate, row);
    top = fmaxf(one + before, gate);
    shift = before - top;
    weight = expf(gate - top);
  }
  float *mine = (float *)shared + (TEAM > 1 ? 0 : warp) * 5 * padded;
  const Rows rows = {mine, mine + padded, mine + 2 * padded, mine + 3 * padded, mine + 4 * padded};
  const float all = expf(one + shift);
  float qk = 0.f, qb = 0.f, amount = 0.f;
  for (int k = lane + 32 * member; k < padded; k += 32 * TEAM) {
    float q = 0.f, x = 0.f, d = 0.f, low = 0.f, of_a = 0.f, lifted = 0.f;
    if (k < K) {
      q = load(a.q, key + k), x = load(a.k, key + k);
      d = a.decay == GYRE_DECAY_VECTOR ? expf(load(a.g, row * K + k) + shift) : all;
      if (is_general) low = load(a.b, row * K + k), of_a = load(a.a, row * K + k);
      lifted = has_bonus ? load(a.bonus, h * K + k) * x : x;
    }
    rows.decay[k] = d;
    rows.read_a[k] = has_beta ? d * x : of_a;
    rows.read_y[k] = has_bonus ? q : q * d;
    rows.write_a[k] = low;
    rows.write_k[k] = x;
    qk += q * lifted;
    qb += q * low;
    if (a.divisor && k < K) {
      float z = fresh ? 0.f : load_or(a.norm_state, row * K + k, 0.f), next = d * z + weight * x;
      amount += q * (has_bonus ? z + lifted : next);
      if (part == 0 && present(a.final_norm)) store(a.final_norm, row * K + k, next);
    }
  }
  qk = warp_sum(qk);
  if (is_general) qb = warp_sum(qb);
  if (a.divisor) amount = warp_sum(amount);
  if (part == 0 && lane == 0 && member == 0 && present(a.final_max)) store(a.final_max, row, top);
  if (TEAM > 1) {
    if (lane == 0) scalars[member][0] = qk, scalars[member][1] = qb, scalars[member][2] = amount;
    __syncthreads();
  } else {
    __syncwarp();
  }

  float4 sum_a = make_float4(0.f, 0.f, 0.f, 0.f), sum_y = sum_a;
#pragma unroll
  for (int n = 0; n < N / 4; n++) {
    const int k = 4 * ((n * TEAM + member) * LINES + line);
    if (k >= K) continue;
    float of_a[4], of_y[4];
    four_of(rows.read_a + k, of_a);
    four_of(rows.read_y + k, of_y);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      add_times(sum_a, of_a[j], S[4 * n + j]);
      add_times(sum_y, of_y[j], S[4 * n + j]);
    }
  }
#pragma unroll
  for (int o = LANES; o < 32; o <<= 1) {
    if (has_beta || is_general) add(sum_a, across(sum_a, o));
    add(sum_y, across(sum_y, o));
  }
  if (TEAM > 1) {
    if (line == 0) parts_of[member][column_lane] = {sum_a, sum_y};
    __syncthreads();
    sum_a = parts_of[0][column_lane].a, sum_y = parts_of[0][column_lane].y;
    qk = scalars[0][0], qb = scalars[0][1], amount = scalars[0][2];
#pragma unroll
    for (int w = 1; w < TEAM; w++) {
      add(sum_a, parts_of[w][column_lane].a);
      add(sum_y, parts_of[w][column_lane].y);
      qk += scalars[w][0], qb += scalars[w][1], amount += scalars[w][2];
    }
  }

  const Four four = raw.four();
  const float4 v = make_float4(four.c[0], four.c[1], four.c[2], four.c[3]);
  float4 W = v;
  if (has_beta) {
    add_times(W, -1.f, sum_a);
    W = make_float4(beta * W.x, beta * W.y, beta * W.z, beta * W.w);
  } else {
    W = make_float4(weight * v.x, weight * v.y, weight * v.z, weight * v.w);
  }
  float4 *final_state = (float4 *)((float *)a.final_state.data + place);
#pragma unroll
  for (int n = 0; n < N / 4; n++) {
    const int first = 4 * ((n * TEAM + member) * LINES + line);
    if (first >= K) continue;
    float decay[4], of_a[4], of_k[4];
    four_of(rows.decay + first, decay);
    four_of(rows.write_k + first, of_k);
    if (is_general) four_of(rows.write_a + first, of_a);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float4 s = S[4 * n + j];
      const float d = decay[j];
      float4 next = make_float4(d * s.x, d * s.y, d * s.z, d * s.w);
      if (is_general) add_times(next, of_a[j], sum_a);
      add_times(next, of_k[j], W);
      if (first + j < K) store_once(final_state + (first + j) * (V / 4), next);
    }
  }
  if (line || member) return;
  float4 y = sum_y;
  add_times(y, qk, has_bonus ? v : W);
  if (is_general) add_times(y, qb, sum_a);
  float scale = a.scale;
  if (a.divisor) {
    amount *= a.scale;
    float bound = a.divisor == GYRE_DIVISOR_FLOOR ? a.floor : expf(-top);
    float size = a.divisor == GYRE_DIVISOR_SUM ? amount : fmaxf(fabsf(amount), bound);
    scale /= size + a.epsilon;
  }
  const Four out = {{scale * y.x, scale * y.y, scale * y.z, scale * y.w}};
  store4<false>(a.y, column, out);
}

#define ENTRY(NAME, N, TEAM, BLOCKS)                                                             \
  extern "C" __global__ void __launch_bounds__(32 * (TEAM > 1 ? TEAM : WARPS), BLOCKS) NAME(gyre_head_args a) { \
    step<N, TEAM>(a);                                                                            \
  }
ENTRY(head_step_8, 8, 1, 6)
ENTRY(head_step_16, 16, 1, 4)
ENTRY(head_pair_16, 16, 2, 8)
ENTRY(head_team_16, 16, WARPS, 4)
ENTRY(head_team_32, 32, WARPS, 3)
