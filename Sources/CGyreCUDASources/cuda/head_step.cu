// One token of linear attention or a delta rule: every state is read once and written once, into the same
// memory if asked. A warp holds 4 * LANES columns of the K rows of one head's state, 2^LOG_LANES lanes of four
// columns beside each other and LINES of them below each other, so that it waits for nobody, or two or, where K is
// large, the four warps of a block hold a part of the rows each. All rules are
// S' = D S + p A + k W for one token, with A = (D S)'k, W = beta (v - A) without p, or A = S'a, p = b, W = v,
// or no A and W = w v; so that S''q needs only sums over S, made together with A.
// What surrounds a rule (unit keys, gates, the norm behind it) is done on the way where a step has it (GYRE_STEP).
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
#define DECAY_RATE 0.6065306597126334f  // e^-1/2

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

GYRE_DEVICE float softplus(float x) { return fmaxf(x, 0.f) + log1pf(expf(-fabsf(x))); }

// Elements as they lie in memory, to be numbers later. HALF: tokens' arrays are bfloat16 and parameters float32,
// so that no load waits for another one on the question of its type.
template <bool HALF> struct Token {
  unsigned bits;
  GYRE_DEVICE void fetch(const gyre_array &a, long i) {
    bits = HALF ? (unsigned)((const unsigned short *)a.data)[i] : bits_at(a, i);
  }
  GYRE_DEVICE float value(const gyre_array &a) const {
    return HALF ? __uint_as_float(bits << 16) : number(a, bits);
  }
};
template <bool HALF> struct Parameter {
  unsigned bits;
  GYRE_DEVICE void fetch(const gyre_array &a, long i) {
    bits = HALF ? ((const unsigned *)a.data)[i] : bits_at(a, i);
  }
  GYRE_DEVICE float value(const gyre_array &a) const { return HALF ? __uint_as_float(bits) : number(a, bits); }
};
template <bool HALF> GYRE_DEVICE float state_at(const gyre_array &a, long i) {
  return HALF ? ((const float *)a.data)[i] : load(a, i);
}
template <bool HALF> struct TokenFour {
  Raw4<HALF> raw;
  GYRE_DEVICE void fetch(const gyre_array &a, long i) { raw = Raw4<HALF>(a, i); }
  GYRE_DEVICE Four value() const { return raw.four(); }
};
template <bool HALF> struct ParameterFour {
  Four v;
  GYRE_DEVICE void fetch(const gyre_array &a, long i) {
    if (!HALF) {
      v = load4<false>(a, i);
      return;
    }
    const float4 f = *(const float4 *)((const float *)a.data + i);
    v.c[0] = f.x, v.c[1] = f.y, v.c[2] = f.z, v.c[3] = f.w;
  }
};

// What a head's token is scaled by, on its way and then known.
template <bool HALF> struct RawGates {
  Token<HALF> first, second, third;
  Parameter<HALF> bias, other;
  float max;
  GYRE_DEVICE void fetch(const gyre_head_step_args &s, unsigned b, unsigned h, long row, bool fresh) {
    const gyre_head_args &a = s.of;
    max = fresh || !present(a.max_state) ? 0.f : state_at<HALF>(a.max_state, row);
    if (s.surrounds == GYRE_STEP_DELTA || s.surrounds == GYRE_STEP_MLSTM) {
      const unsigned heads = (unsigned)a.heads, z = b * 2 * heads + h;
      first.fetch(s.z, z), second.fetch(s.z, z + heads), bias.fetch(s.bias, h);
      if (s.surrounds == GYRE_STEP_DELTA) other.fetch(s.log_rate, h);
      else other.fetch(s.bias, heads + h);
      return;
    }
    if (present(a.beta)) first.fetch(a.beta, row);
    if (present(a.input_gate)) second.fetch(a.input_gate, row);
    if (a.decay == GYRE_DECAY_SCALAR) third.fetch(a.g, row);
    if (a.decay == GYRE_DECAY_CONSTANT) bias.fetch(a.g, h);
  }
};
template <bool HALF> struct Gates {
  float decay = 0.f, beta = 1.f, input = 0.f;
  __device__ __forceinline__ Gates(const gyre_head_step_args &s, const RawGates<HALF> &raw) {
    const gyre_head_args &a = s.of;
    const float c = s.strength;
    if (s.surrounds == GYRE_STEP_DELTA) {
      decay = -expf(raw.other.value(s.log_rate)) * softplus(raw.first.value(s.z) + raw.bias.value(s.bias));
      beta = c * sigmoid(raw.second.value(s.z));
    } else if (s.surrounds == GYRE_STEP_MLSTM) {
      input = c * tanhf((raw.first.value(s.z) + raw.bias.value(s.bias)) / c);
      decay = log_sigmoid(c * tanhf((raw.second.value(s.z) + raw.other.value(s.bias)) / c));
    } else {
      if (present(a.beta)) beta = raw.first.value(a.beta);
      if (present(a.input_gate)) input = raw.second.value(a.input_gate);
      if (a.decay == GYRE_DECAY_SCALAR) decay = raw.third.value(a.g);
      if (a.decay == GYRE_DECAY_CONSTANT) decay = raw.bias.value(a.g);
    }
  }
};

// What belongs to a row of the state, on its way; of RWKV-7 a and b are the key's scale and the rate, g the decay.
template <bool HALF> struct Key {
  Token<HALF> q, k, g, b, a;
  Parameter<HALF> scale, bonus, rate_bias, decay_bias, key_rate;
  float z;
  GYRE_DEVICE void fetch(const gyre_head_step_args &s, long key, long row, unsigned parameter, int i, bool fresh) {
    const gyre_head_args &h = s.of;
    if (i >= (int)h.key_size) return;
    q.fetch(h.q, key + i), k.fetch(h.k, key + i);
    if (s.surrounds == GYRE_STEP_RWKV7) {
      b.fetch(s.rate, key + i), g.fetch(s.decay, key + i), scale.fetch(s.key_scale, parameter + i);
      rate_bias.fetch(s.bias, parameter + i), decay_bias.fetch(s.decay_bias, parameter + i);
      key_rate.fetch(s.key_rate, parameter + i), bonus.fetch(s.bonus, parameter + i);
      return;
    }
    if (h.decay == GYRE_DECAY_VECTOR) g.fetch(h.g, row + i);
    if (present(h.a)) a.fetch(h.a, row + i), b.fetch(h.b, row + i);
    if (present(h.bonus)) bonus.fetch(h.bonus, parameter + i);
    z = fresh || !present(h.norm_state) ? 0.f : state_at<HALF>(h.norm_state, row + i);
  }
};

// Of four channels of a head, over the lanes that have its columns.
GYRE_DEVICE float line_sum(float x) {
  const unsigned mask = LANES == 32 ? ~0u : (1u << (LANES & 31)) - 1;
#pragma unroll
  for (int o = LANES / 2; o; o >>= 1) x += __shfl_xor_sync(mask, x, o);
  return x;
}

// The norm behind the recurrence of a head whose columns the lanes of one line have; `score` of v is added.
template <bool HALF> struct ReadOut {
  TokenFour<HALF> gate;
  ParameterFour<HALF> weight, bias;
  GYRE_DEVICE void fetch(const gyre_head_step_args &s, long column, long parameter) {
    gate.fetch(s.gate, column), weight.fetch(s.weight, parameter);
    if (present(s.norm_bias)) bias.fetch(s.norm_bias, parameter);
  }
  GYRE_DEVICE void apply(const gyre_head_step_args &s, float score, const Four &v, Four &y) const {
    const bool centers = s.surrounds == GYRE_STEP_RWKV7;
    const float size = COLUMNS;
    float mean = 0.f, square = 0.f;
    if (centers) mean = line_sum(y.c[0] + y.c[1] + y.c[2] + y.c[3]) / size;
    EACH_CHANNEL(i) {
      y.c[i] -= mean;
      square += y.c[i] * y.c[i];
    }
    const float scale = 1.f / sqrtf(line_sum(square) / size + s.norm_epsilon);
    const Four z = gate.value(), &w = weight.v, shift = present(s.norm_bias) ? bias.v : zero4();
    EACH_CHANNEL(i) {
      const float open = centers ? 1.f : quick_sigmoid(z.c[i]), times = centers || s.gate_is_silu ? z.c[i] : 1.f;
      y.c[i] = (y.c[i] * scale * w.c[i] + shift.c[i] + score * v.c[i]) * open * times;
    }
  }
};

// K up to N * LINES * TEAM, TEAM 1, 2 or WARPS; row 4 ((n * TEAM + member) * LINES + line) + j of the state is element
// 4 n + j of a lane. Shared: of each team what A and y read, the decay, and what A and W write, [5][K up to a
// multiple of 4].
template <int N, int TEAM, bool HALF> GYRE_DEVICE void step(const gyre_head_step_args &s) {
  begin_early();
  const gyre_head_args &a = s.of;
  __shared__ Sums parts_of[TEAM][LANES];
  __shared__ float scalars[TEAM][5];
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
  const bool is_delta = s.surrounds == GYRE_STEP_DELTA, is_rwkv7 = s.surrounds == GYRE_STEP_RWKV7;
  const bool has_beta = is_delta || present(a.beta), is_general = is_rwkv7 || present(a.a);
  const bool has_bonus = present(a.bonus), blends = is_rwkv7 && present(s.first);

  // What is small goes first: behind the state's loads it would wait for all of them. Where the state leaves
  // registers, its loads follow at once.
  constexpr bool AHEAD = N <= 16;
  constexpr int U = AHEAD ? 1 : 2;
  TokenFour<HALF> raw_v, raw_first, raw_amount;
  ParameterFour<HALF> raw_bias;
  raw_v.fetch(a.v, column);
  if (blends) {
    raw_first.fetch(s.first, column), raw_amount.fetch(s.amount, column);
    raw_bias.fetch(s.amount_bias, h * (unsigned)V + column_lane * 4);
  }
  RawGates<HALF> raw_gates;
  raw_gates.fetch(s, b, h, row, fresh);
  const int start = lane + 32 * member;
  Key<HALF> keys[U];
#pragma unroll
  for (int u = 0; u < U; u++) keys[u].fetch(s, key, row * K, h * K, start + u * 32 * TEAM, fresh);
  asm volatile("" ::: "memory");
  float4 S[N];
  auto load_state = [&]() {
#pragma unroll
    for (int i = 0; i < N; i++) {
      const int k = 4 * ((i / 4 * TEAM + member) * LINES + line) + i % 4;
      S[i] = fresh || k >= K ? make_float4(0.f, 0.f, 0.f, 0.f) : load_once(state + k * (V / 4));
    }
  };
  if (AHEAD) load_state();

  const Gates<HALF> gates(s, raw_gates);
  const float before = raw_gates.max;
  float top = before, weight = 1.f, shift = 0.f;
  if (a.divisor == GYRE_DIVISOR_EXPONENTIAL) {
    top = fmaxf(gates.decay + before, gates.input);
    shift = before - top;
    weight = expf(gates.input - top);
  }
  float *mine = (float *)shared + (TEAM > 1 ? 0 : warp) * 5 * padded;
  const Rows rows = {mine, mine + padded, mine + 2 * padded, mine + 3 * padded, mine + 4 * padded};
  const float all = expf(gates.decay + shift);
  // `amount` is the divisor's sum, of RWKV-7 what v is added by; of q and k in their length.
  float qk = 0.f, qb = 0.f, amount = 0.f, qq = 0.f, kk = 0.f;
  for (int first = start; first < padded; first += U * 32 * TEAM) {
    if (first != start) {
#pragma unroll
      for (int u = 0; u < U; u++) keys[u].fetch(s, key, row * K, h * K, first + u * 32 * TEAM, fresh);
    }
#pragma unroll
    for (int u = 0; u < U; u++) {
      const int k = first + u * 32 * TEAM;
      if (k >= padded) continue;
      const Key<HALF> &raw = keys[u];
      float q = 0.f, x = 0.f, d = 0.f, low = 0.f, of_a = 0.f, lifted = 0.f;
      if (k < K) {
        q = raw.q.value(a.q), x = raw.k.value(a.k);
        if (is_rwkv7) {
          const float rate = quick_sigmoid(raw.b.value(s.rate) + raw.rate_bias.value(s.bias));
          const float open = quick_sigmoid(raw.g.value(s.decay) + raw.decay_bias.value(s.decay_bias));
          d = expf(-DECAY_RATE * open);
          of_a = -x * raw.scale.value(s.key_scale);
          kk += of_a * of_a;
          low = -of_a * rate;
          x *= 1.f + (rate - 1.f) * raw.key_rate.value(s.key_rate);
          amount += q * x * raw.bonus.value(s.bonus);
        } else {
          d = a.decay == GYRE_DECAY_VECTOR ? expf(raw.g.value(a.g) + shift) : all;
          if (is_general) low = raw.b.value(a.b), of_a = raw.a.value(a.a);
          kk += x * x;
          qq += q * q;
        }
        lifted = has_bonus ? raw.bonus.value(a.bonus) * x : x;
      }
      rows.decay[k] = d;
      rows.read_a[k] = has_beta ? d * x : of_a;
      rows.read_y[k] = has_bonus ? q : q * d;
      rows.write_a[k] = low;
      rows.write_k[k] = x;
      qk += q * lifted;
      qb += q * low;
      if (a.divisor && k < K) {
        const float z = raw.z, next = d * z + weight * x;
        amount += q * (has_bonus ? z + lifted : next);
        if (part == 0 && present(a.final_norm)) store(a.final_norm, row * K + k, next);
      }
    }
  }
  Four v4;
  auto set_values = [&]() {
    v4 = raw_v.value();
    if (!blends) return;
    const Four first = raw_first.value(), amount = raw_amount.value();
    EACH_CHANNEL(i) v4.c[i] += (first.c[i] - v4.c[i]) * quick_sigmoid(amount.c[i] + raw_bias.v.c[i]);
  };
  if (!AHEAD) {
    set_values();
    load_state();
  }
  qk = warp_sum(qk);
  if (is_general) qb = warp_sum(qb);
  if (a.divisor || is_rwkv7) amount = warp_sum(amount);
  if (is_delta || is_rwkv7) qq = warp_sum(qq), kk = warp_sum(kk);
  if (part == 0 && lane == 0 && member == 0 && present(a.final_max)) store(a.final_max, row, top);
  if (TEAM > 1) {
    if (lane == 0) {
      scalars[member][0] = qk, scalars[member][1] = qb, scalars[member][2] = amount;
      scalars[member][3] = qq, scalars[member][4] = kk;
    }
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
    qk = scalars[0][0], qb = scalars[0][1], amount = scalars[0][2], qq = scalars[0][3], kk = scalars[0][4];
#pragma unroll
    for (int w = 1; w < TEAM; w++) {
      add(sum_a, parts_of[w][column_lane].a);
      add(sum_y, parts_of[w][column_lane].y);
      qk += scalars[w][0], qb += scalars[w][1], amount += scalars[w][2], qq += scalars[w][3], kk += scalars[w][4];
    }
  }

  if (AHEAD) set_values();
  const float4 v = make_float4(v4.c[0], v4.c[1], v4.c[2], v4.c[3]);
  // Rows are read and written with k as it came; what makes its length one is left for here.
  float of_key = 1.f, of_query = 1.f;
  if (is_delta) of_key = rsqrtf(kk + s.key_epsilon), of_query = rsqrtf(qq + s.key_epsilon);
  if (is_delta || is_rwkv7) {
    const float of_sum = is_delta ? of_key : 1.f / (kk + s.key_epsilon);
    sum_a = make_float4(of_sum * sum_a.x, of_sum * sum_a.y, of_sum * sum_a.z, of_sum * sum_a.w);
  }
  float4 W = v;
  if (has_beta) {
    const float beta = gates.beta * of_key;
    add_times(W, -1.f, sum_a);
    W = make_float4(beta * W.x, beta * W.y, beta * W.z, beta * W.w);
  } else {
    W = make_float4(weight * v.x, weight * v.y, weight * v.z, weight * v.w);
  }
  const bool reads_out = (is_delta || is_rwkv7) && line == 0 && member == 0;
  ReadOut<HALF> read_out;
  const long parameter = (is_rwkv7 ? h * V : 0) + column_lane * 4;
  if (AHEAD && reads_out) read_out.fetch(s, column, parameter);
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
  float scale = a.scale * of_query;
  if (a.divisor) {
    amount *= a.scale;
    float bound = a.divisor == GYRE_DIVISOR_FLOOR ? a.floor : expf(-top);
    float size = a.divisor == GYRE_DIVISOR_SUM ? amount : fmaxf(fabsf(amount), bound);
    scale /= size + a.epsilon;
  }
  Four out = {{scale * y.x, scale * y.y, scale * y.z, scale * y.w}};
  if (reads_out) {
    if (!AHEAD) read_out.fetch(s, column, parameter);
    read_out.apply(s, is_rwkv7 ? amount : 0.f, v4, out);
  }
  store4<HALF>(a.y, column, out);
}

#define ENTRY(NAME, N, TEAM, BLOCKS, HALF)                                                       \
  extern "C" __global__ void __launch_bounds__(32 * (TEAM > 1 ? TEAM : WARPS), BLOCKS) NAME(       \
      const __grid_constant__ gyre_head_step_args s) {                                           \
    step<N, TEAM, HALF>(s);                                                                      \
  }
ENTRY(head_step_8, 8, 1, 5, false)
ENTRY(head_step_16, 16, 1, 4, false)
ENTRY(head_pair_16, 16, 2, 8, false)
ENTRY(head_team_16, 16, WARPS, 4, false)
ENTRY(head_team_32, 32, WARPS, 3, false)
ENTRY(head_step_8_half, 8, 1, 5, true)
ENTRY(head_step_16_half, 16, 1, 4, true)
ENTRY(head_pair_16_half, 16, 2, 8, true)
ENTRY(head_team_16_half, 16, WARPS, 4, true)
ENTRY(head_team_32_half, 32, WARPS, 3, true)
