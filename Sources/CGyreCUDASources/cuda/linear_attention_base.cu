// Linear attention, any decay, divisor, bonus and size: the base path, token by token with the state in
// registers. K·V fused multiply-adds a token twice; the chain of tokens bounds it.
// Variants: LOG_ROWS=2..5
#include "head.cuh"

struct Walk {
  float S[ROWS], z[ROWS], m;
  GYRE_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < ROWS; i++) S[i] = z[i] = 0.f;
    m = 0.f;
  }
};

// What a token brings.
struct Token {
  float q[ROWS], k[ROWS], decay[ROWS], weight, v;
  GYRE_DEVICE Token(const gyre_head_args &a, const Head &head, long t) {
    head.load_rows(a, a.q, head.key(a, t), q);
    head.load_rows(a, a.k, head.key(a, t), k);
    head.load_decay(a, t, decay);
    v = head.exists ? load(a.v, head.token(a, t) * a.value_size + head.column) : 0.f;
    weight = 1.f;
  }
  // Gates as factors, and the stabiliser they leave.
  GYRE_DEVICE float open(const gyre_head_args &a, const Head &head, long t, float m) {
    float top = 0.f, shift = 0.f;
    if (a.divisor == GYRE_DIVISOR_EXPONENTIAL) {
      float gate = load(a.input_gate, head.token(a, t));
      top = fmaxf(__shfl_sync(~0u, decay[0], threadIdx.x & 16) + m, gate);
      shift = m - top;
      weight = expf(gate - top);
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) decay[i] = expf(decay[i] + shift);
    return top;
  }
};

GYRE_DEVICE void advance(Walk &w, const Token &x, float m) {
  float vk = x.weight * x.v;
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    w.S[i] = x.decay[i] * w.S[i] + x.k[i] * vk;
    w.z[i] = x.decay[i] * w.z[i] + x.weight * x.k[i];
  }
  w.m = m;
}

struct Divisor {
  float value, slope;
};
GYRE_DEVICE Divisor divisor(const gyre_head_args &a, float amount, float m) {
  if (a.divisor == GYRE_DIVISOR_SUM) return {amount + a.epsilon, 1.f};
  float bound = a.divisor == GYRE_DIVISOR_FLOOR ? a.floor : expf(-m);
  if (fabsf(amount) > bound) return {fabsf(amount) + a.epsilon, amount > 0.f ? 1.f : -1.f};
  return {bound + a.epsilon, 0.f};
}

GYRE_DEVICE void begin(const gyre_head_args &a, const Head &head, Walk &w) {
  head.load_state(a, a.state, w.S);
  if (present(a.norm_state)) {
    head.load_rows(a, a.norm_state, head.row * a.key_size, w.z);
  } else {
#pragma unroll
    for (int i = 0; i < ROWS; i++) w.z[i] = 0.f;
  }
  w.m = load_or(a.max_state, head.row, 0.f);
}

GYRE_DEVICE void keep(const gyre_head_args &a, const Head &head, long t, const Walk &w) {
  head.keep(a, t, w.S);
  if (!head.is_first()) return;
  long slot = head.row * a.slots + t / INTERVAL;
#pragma unroll
  for (int i = 0; i < ROWS; i++)
    if (i * 16 + head.lane < a.key_size)
      a.kept_norm[slot * a.key_size + i * 16 + head.lane] = w.z[i];
  if (head.lane == 0) a.kept_max[slot] = w.m;
}

// With `kept` given only the states are made.
GYRE_KERNEL linear_attention_forward(gyre_head_args a) {
  Head head(a);
  Walk w;
  begin(a, head, w);
  float bonus[ROWS];
  if (present(a.bonus)) head.load_rows(a, a.bonus, head.h * a.key_size, bonus);
  for (long t = 0; t < a.tokens; t++) {
    if (a.kept && t % INTERVAL == 0) keep(a, head, t, w);
    if (head.is_reset(a, t)) w.clear();
    Token x(a, head, t);
    float m = x.open(a, head, t, w.m);
    if (a.kept) {
      advance(w, x, m);
      continue;
    }
    float numerator, amount = 0.f;
    if (present(a.bonus)) {
      float S[ROWS], z[ROWS];
#pragma unroll
      for (int i = 0; i < ROWS; i++) {
        float lifted = bonus[i] * x.k[i];
        S[i] = w.S[i] + lifted * x.v;
        z[i] = w.z[i] + lifted;
      }
      numerator = dot(S, x.q);
      if (a.divisor) amount = a.scale * dot(z, x.q);
      advance(w, x, m);
    } else {
      advance(w, x, m);
      numerator = dot(w.S, x.q);
      if (a.divisor) amount = a.scale * dot(w.z, x.q);
    }
    float y = a.scale * numerator;
    if (a.divisor) y /= divisor(a, amount, w.m).value;
    if (head.exists && head.lane == 0)
      store(a.y, head.token(a, t) * a.value_size + head.column, y);
  }
  if (a.kept) return;
  head.store_state(a, a.final_state, w.S);
  if (!head.is_first()) return;
  if (present(a.final_norm)) {
#pragma unroll
    for (int i = 0; i < ROWS; i++)
      if (i * 16 + head.lane < a.key_size)
        store(a.final_norm, head.row * a.key_size + i * 16 + head.lane, w.z[i]);
  }
  if (present(a.final_max) && head.lane == 0) store(a.final_max, head.row, w.m);
}

// The tokens from `last` down to `first`, both multiples of the interval or the end.
GYRE_KERNEL linear_attention_backward(gyre_head_args a) {
  extern __shared__ float shared[];
  Head head(a);
  float dS[ROWS], dz[ROWS], bonus[ROWS], dbonus[ROWS];
  long K = a.key_size, V = a.value_size;
  float *carry = a.carry + head.row * K * V + head.column;
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    int k = i * 16 + head.lane;
    bool in = k < K;
    dbonus[i] = dS[i] = dz[i] = 0.f;
    bonus[i] = in && present(a.bonus) ? load(a.bonus, head.h * K + k) : 0.f;
    if (a.last == a.tokens) {
      if (in && head.exists && present(a.dfinal_state))
        dS[i] = load(a.dfinal_state, (head.row * K + k) * V + head.column);
      if (in && present(a.dfinal_norm)) dz[i] = load(a.dfinal_norm, head.row * K + k);
    } else {
      if (in && head.exists) dS[i] = carry[k * V];
      if (in) dz[i] = a.carry_norm[head.row * K + k];
    }
  }
  __syncthreads();  // the norm's carry is read by all columns and written by one
  Walk before[INTERVAL];
  int turn = 0;
  for (long start = (a.last - 1) / INTERVAL * INTERVAL; start >= a.first; start -= INTERVAL) {
    long end = start + INTERVAL < a.last ? start + INTERVAL : a.last;
    Walk w;
    head.recall(a, start, w.S);
    long slot = head.row * a.slots + start / INTERVAL;
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
      int k = i * 16 + head.lane;
      w.z[i] = k < K ? a.kept_norm[slot * K + k] : 0.f;
    }
    w.m = a.kept_max[slot];
    for (long t = start; t < end; t++) {
      if (head.is_reset(a, t)) w.clear();
      before[t - start] = w;
      Token x(a, head, t);
      float m = x.open(a, head, t, w.m);
      advance(w, x, m);
    }
    for (long t = end - 1; t >= start; t--, turn ^= 1) {
      const Walk &old = before[t - start];
      Token x(a, head, t);
      float m = x.open(a, head, t, old.m);
      // What the query read.
      float S[ROWS], z[ROWS];
#pragma unroll
      for (int i = 0; i < ROWS; i++) {
        float lifted = bonus[i] * x.k[i];
        S[i] = present(a.bonus) ? old.S[i] + lifted * x.v
                                : x.decay[i] * old.S[i] + x.weight * x.k[i] * x.v;
        z[i] = present(a.bonus) ? old.z[i] + lifted : x.decay[i] * old.z[i] + x.weight * x.k[i];
      }
      float dn = head.exists ? load(a.dy, head.token(a, t) * V + head.column) : 0.f, da = 0.f;
      if (a.divisor) {
        Divisor d = divisor(a, a.scale * dot(z, x.q), m);
        dn /= d.value;
        da = -a.row_dots[head.token(a, t)] / d.value * d.slope;
      }
      bool adds_norm = a.divisor && head.is_first();
      float sums[3][ROWS], dv = 0.f;
#pragma unroll
      for (int i = 0; i < ROWS; i++) {
        float read = a.scale * x.q[i] * dn, read_norm = a.scale * da * x.q[i];
        sums[0][i] = a.scale * (S[i] * dn + (adds_norm ? da * z[i] : 0.f));
        if (!present(a.bonus)) dS[i] += read, dz[i] += read_norm;
        sums[1][i] = x.weight * (dS[i] * x.v + (adds_norm ? dz[i] : 0.f));
        dv += x.weight * dS[i] * x.k[i];
        if (present(a.bonus)) {
          float lifted = read * x.v + (adds_norm ? read_norm : 0.f);
          sums[1][i] += bonus[i] * lifted;
          dbonus[i] += x.k[i] * lifted;
          dv += read * bonus[i] * x.k[i];
        }
        sums[2][i] = x.decay[i] * (dS[i] * old.S[i] + (adds_norm ? dz[i] * old.z[i] : 0.f));
        dS[i] *= x.decay[i];
        dz[i] *= x.decay[i];
        if (present(a.bonus)) dS[i] += read, dz[i] += read_norm;
      }
      dv = column_sum16(dv);
      if (head.exists && head.lane == 0) store(a.dv, head.token(a, t) * V + head.column, dv);
      long at = ((head.tile * a.batch + head.b) * (a.last - a.first) + t - a.first) * a.heads + head.h;
      sum_over_columns<3>(a, head, sums, 0.f, shared, turn, a.partial + at * 3 * K, nullptr);
      if (head.is_reset(a, t)) {
#pragma unroll
        for (int i = 0; i < ROWS; i++) dS[i] = dz[i] = 0.f;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    int k = i * 16 + head.lane;
    if (k >= K) continue;
    if (head.exists) carry[k * V] = dS[i];
    if (head.is_first()) a.carry_norm[head.row * K + k] = dz[i];
    if (a.first == 0 && head.is_first() && present(a.dnorm_state))
      store(a.dnorm_state, head.row * K + k, dz[i]);
  }
  if (a.first == 0 && present(a.dstate)) head.store_state(a, a.dstate, dS);
  if (!present(a.bonus)) return;
  // The other half of the shared memory is free once all have passed the last sum's barrier.
  float sums[1][ROWS];
  float *total = shared + 16 * (3 * K + 1);
#pragma unroll
  for (int i = 0; i < ROWS; i++) sums[0][i] = dbonus[i];
  __syncthreads();
  sum_over_columns<1>(a, head, sums, 0.f, shared, 0, total, nullptr);
  __syncthreads();
  float *out = a.partial_bonus + ((head.tile * a.batch + head.b) * a.heads + head.h) * K;
  for (long k = threadIdx.x; k < K; k += blockDim.x) out[k] += total[k];
}
