// The delta rule, with beta or diagonal plus low rank, any gate and size: the base path, token by token
// with the state in registers.
// Variants: LOG_ROWS=2..5
#include "head.cuh"

struct Token {
  float q[ROWS], k[ROWS], decay[ROWS], a[ROWS], b[ROWS], beta, v;
  GYRE_DEVICE Token(const gyre_head_args &x, const Head &head, long t) {
    head.load_rows(x, x.q, head.key(x, t), q);
    head.load_rows(x, x.k, head.key(x, t), k);
    head.load_decay(x, t, decay);
#pragma unroll
    for (int i = 0; i < ROWS; i++) decay[i] = expf(decay[i]);
    v = head.exists ? load(x.v, head.token(x, t) * x.value_size + head.column) : 0.f;
    if (present(x.beta)) {
      beta = load(x.beta, head.token(x, t));
    } else {
      head.load_rows(x, x.a, head.token(x, t) * x.key_size, a);
      head.load_rows(x, x.b, head.token(x, t) * x.key_size, b);
    }
  }
};

// Moves the state over a token; returns what the low-rank term wrote: v - (DS)'k before beta, or S'a.
GYRE_DEVICE float advance(const gyre_head_args &x, float (&S)[ROWS], const Token &t) {
  if (present(x.beta)) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) S[i] *= t.decay[i];
    float error = t.v - dot(S, t.k), write = t.beta * error;
#pragma unroll
    for (int i = 0; i < ROWS; i++) S[i] += t.k[i] * write;
    return error;
  }
  float read = dot(S, t.a);
#pragma unroll
  for (int i = 0; i < ROWS; i++) S[i] = t.decay[i] * S[i] + t.b[i] * read + t.k[i] * t.v;
  return read;
}

GYRE_DEVICE void clear(float (&S)[ROWS]) {
#pragma unroll
  for (int i = 0; i < ROWS; i++) S[i] = 0.f;
}

// With `kept` given only the states are made.
GYRE_KERNEL delta_rule_forward(gyre_head_args a) {
  Head head(a);
  float S[ROWS];
  head.load_state(a, a.state, S);
  for (long t = 0; t < a.tokens; t++) {
    if (a.kept && t % INTERVAL == 0) head.keep(a, t, S);
    if (head.is_reset(a, t)) clear(S);
    Token x(a, head, t);
    advance(a, S, x);
    if (a.kept) continue;
    float y = a.scale * dot(S, x.q);
    if (head.exists && head.lane == 0) store(a.y, head.token(a, t) * a.value_size + head.column, y);
  }
  if (!a.kept) head.store_state(a, a.final_state, S);
}

// Partials: dq, dk, dg, then da and db of the general rule; the scalar is d beta.
template <bool GENERAL> GYRE_DEVICE void backward(const gyre_head_args &a) {
  constexpr int N = GENERAL ? 5 : 3;
  extern __shared__ float shared[];
  Head head(a);
  long K = a.key_size, V = a.value_size;
  float dS[ROWS], before[INTERVAL][ROWS];
  float *carry = a.carry + head.row * K * V + head.column;
  if (a.last == a.tokens) {
    head.load_state(a, a.dfinal_state, dS);
  } else {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
      int k = i * 16 + head.lane;
      dS[i] = head.exists && k < K ? carry[k * V] : 0.f;
    }
  }
  int turn = 0;
  for (long start = (a.last - 1) / INTERVAL * INTERVAL; start >= a.first; start -= INTERVAL) {
    long end = start + INTERVAL < a.last ? start + INTERVAL : a.last;
    float S[ROWS];
    head.recall(a, start, S);
    for (long t = start; t < end; t++) {
      if (head.is_reset(a, t)) clear(S);
#pragma unroll
      for (int i = 0; i < ROWS; i++) before[t - start][i] = S[i];
      Token x(a, head, t);
      advance(a, S, x);
    }
    for (long t = end - 1; t >= start; t--, turn ^= 1) {
      Token x(a, head, t);
      float old[ROWS], sums[N][ROWS], dbeta = 0.f, dv;
#pragma unroll
      for (int i = 0; i < ROWS; i++) S[i] = old[i] = before[t - start][i];
      float read = advance(a, S, x);
      float dy = head.exists ? load(a.dy, head.token(a, t) * V + head.column) : 0.f;
#pragma unroll
      for (int i = 0; i < ROWS; i++) {
        dS[i] += a.scale * x.q[i] * dy;
        sums[0][i] = a.scale * S[i] * dy;
      }
      if (GENERAL) {
        dv = dot(dS, x.k);
        float dz = dot(dS, x.b);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
          sums[1][i] = dS[i] * x.v;
          sums[2][i] = dS[i] * old[i] * x.decay[i];
          sums[N - 2][i] = old[i] * dz;
          sums[N - 1][i] = dS[i] * read;
          dS[i] = x.decay[i] * dS[i] + x.a[i] * dz;
        }
      } else {
        float dn = dot(dS, x.k), written = x.beta * read, de = x.beta * dn;
        if (head.lane == 0 && head.exists) dbeta = dn * read;
        dv = de;
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
          sums[1][i] = dS[i] * written - x.decay[i] * old[i] * de;
          dS[i] -= x.k[i] * de;
          sums[2][i] = dS[i] * old[i] * x.decay[i];
          dS[i] *= x.decay[i];
        }
      }
      if (head.exists && head.lane == 0) store(a.dv, head.token(a, t) * V + head.column, dv);
      long at = ((head.tile * a.batch + head.b) * (a.last - a.first) + t - a.first) * a.heads + head.h;
      sum_over_columns<N>(
          a, head, sums, dbeta, shared, turn, a.partial + at * N * K,
          GENERAL ? nullptr : a.partial_scalar + at);
      if (head.is_reset(a, t)) clear(dS);
    }
  }
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    int k = i * 16 + head.lane;
    if (head.exists && k < K) carry[k * V] = dS[i];
  }
  if (a.first == 0 && present(a.dstate)) head.store_state(a, a.dstate, dS);
}
GYRE_KERNEL delta_rule_backward_beta(gyre_head_args a) { backward<false>(a); }
GYRE_KERNEL delta_rule_backward_general(gyre_head_args a) { backward<true>(a); }
