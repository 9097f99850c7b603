// One token of a recurrence with a matrix state a head. A block takes up to 32 columns of one head's
// state: a lane a column, a warp every 8th row; what all columns share lies in shared memory.
#pragma once
#include "token_operand.cuh"

#define TILE GYRE_TOKEN_TILE

struct MatrixWork {
  float q[GYRE_TOKEN_KEYS], k[GYRE_TOKEN_KEYS], raw[GYRE_TOKEN_KEYS];
  float rate[GYRE_TOKEN_KEYS], decay[GYRE_TOKEN_KEYS], agreed[GYRE_TOKEN_KEYS];  // RWKV-7
  float v[TILE], sums[2][WARPS][TILE];
  float scalar[2];
};

// Channel c of the streams, through the short convolution where there is one.
GYRE_DEVICE float stream_value(const gyre_token_matrix &m, long b, int c, unsigned base) {
  // The past is added up while the token's number is on its way.
  Asked now(m.x, b, c, base);
  float past = 0.f, last = 1.f;
  if (m.taps > 0) {
    const float *window = m.window + b * (m.taps - 1) * m.channels + c;
    const float *weight = m.taps_weight + (long)c * m.taps;
    if (m.taps_bias) past = m.taps_bias[c];
    if (m.taps == 4) {
      float x[3], w[3];
#pragma unroll
      for (int j = 0; j < 3; j++) x[j] = fresh(window + (long)j * m.channels), w[j] = weight[j];
#pragma unroll
      for (int j = 0; j < 3; j++) past += x[j] * w[j];
    } else {
#pragma unroll 1
      for (int j = 0; j + 1 < m.taps; j++) past += fresh(window + (long)j * m.channels) * weight[j];
    }
    last = weight[m.taps - 1];
  }
  float x = past + now.get() * last;
  return m.function == SILU ? quick_silu(x) : unary(m.function, x);
}

// The sum over the K rows of each column, to all its threads. Two uses in turn need no second barrier:
// each has its place.
GYRE_DEVICE float column_sum(MatrixWork &w, int place, float x) {
  int thread = this_thread(), warp = thread >> 5, lane = thread & 31;
  w.sums[place][warp][lane] = x;
  block_barrier();
  x = 0.f;
#pragma unroll
  for (int i = 0; i < WARPS; i++) x += w.sums[place][i][lane];
  return x;
}
// The sum of x[i] * y[i] over the keys, to all lanes.
GYRE_DEVICE float warp_dot(const float *x, const float *y, int n) {
  float sum = 0.f;
  for (int i = this_thread() & 31; i < n; i += 32) sum += x[i] * y[i];
  return warp_sum(sum);
}

// A tile of a head, for linear attention (Mamba-2) and the gated delta rule: one thread a channel makes
// q, k, v; one the scalars.
template <int ROWS>
GYRE_DEVICE void gated_tile(
    const gyre_token_matrix &m, long b, int h, int first, int own, unsigned base, MatrixWork &w) {
  int tid = this_thread(), warp = tid >> 5, c = tid & 31, keys = m.keys;
  bool exists = c < own, is_delta = m.rule == GYRE_TOKEN_DELTA;
  float *state = m.state + (b * m.heads + h) * keys * m.values + first + c;
  float s[ROWS];
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    int r = warp + i * WARPS;
    s[i] = exists && r < keys ? fresh(state + (long)r * m.values) : 0.f;
  }
  int key_head = h / (m.heads / m.key_heads);
  if (tid == GYRE_TOKEN_THREADS - 1) {
    Asked gate(m.gate, b, h, base), write(is_delta ? m.write : m.gate, b, h, base);
    float rate = expf(m.log_rate[h]), bias = m.step_bias ? m.step_bias[h] : 0.f;
    float step = value<SOFTPLUS>(gate.get() + bias);
    step = fminf(fmaxf(step, m.step_low), m.step_high);
    w.scalar[0] = expf(-rate * step);
    w.scalar[1] = is_delta ? sigmoid(write.get()) * (m.writes_twice ? 2.f : 1.f) : step;
  }
  for (int i = tid; i < 2 * keys + own; i += GYRE_TOKEN_THREADS) {
    int channel = i < keys       ? m.q + key_head * keys + i
                  : i < 2 * keys ? m.k + (key_head - 1) * keys + i
                                 : m.v + h * m.values + first + i - 2 * keys;
    float *to = i < keys ? w.q + i : i < 2 * keys ? w.k + i - keys : w.v + i - 2 * keys;
    *to = stream_value(m, b, channel, base);
  }
  block_barrier();
  float decay = w.scalar[0], write = w.scalar[1], v = exists ? w.v[c] : 0.f;
  float of_q = m.scale, of_k = 1.f, y = 0.f, added;
  float k[ROWS];
  if (is_delta) {
    of_q *= rsqrtf(warp_dot(w.q, w.q, keys) + m.epsilon);
    of_k = rsqrtf(warp_dot(w.k, w.k, keys) + m.epsilon);
  }
  float read = 0.f;
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    int r = warp + i * WARPS;
    k[i] = r < keys ? w.k[r] * of_k : 0.f;
    read += k[i] * s[i];
  }
  added = is_delta ? write * (v - decay * column_sum(w, 0, read)) : write * v;
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    int r = warp + i * WARPS;
    if (r >= keys) break;
    s[i] = decay * s[i] + k[i] * added;
    y += w.q[r] * s[i];
    if (exists) state[(long)r * m.values] = s[i];
  }
  y = column_sum(w, 1, y) * of_q;
  if (warp == 0 && exists) {
    if (m.skip) y += v * m.skip[m.skip_per_channel ? h * m.values + first + c : h];
    give(m.y, b, h * m.values + first + c, base, y);
  }
}

template <int ROWS>
GYRE_DEVICE void rwkv7_tile(
    const gyre_token_matrix &m, long b, int h, int first, int own, unsigned base, MatrixWork &w) {
  int tid = this_thread(), warp = tid >> 5, column = tid & 31, keys = m.keys;
  bool exists = column < own;
  float *state = m.state + (b * m.heads + h) * keys * m.values + first + column;
  float s[ROWS];
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    int r = warp + i * WARPS;
    s[i] = exists && r < keys ? fresh(state + (long)r * m.values) : 0.f;
  }
  for (int i = tid; i < keys; i += GYRE_TOKEN_THREADS) {
    int c = h * keys + i;
    float scale = m.key_scale[c], key_rate = m.key_rate[c], bonus = m.bonus[c];
    Asked asked_k(m.x, b, m.k + c, base), asked_q(m.x, b, m.q + c, base);
    Asked before_rate(m.rate, b, c, base), before_decay(m.decay, b, c, base);
    float k = asked_k.get(), q = asked_q.get();
    float rate = quick_sigmoid(before_rate.get()), own_k = k * ((rate - 1.f) * key_rate + 1.f);
    w.q[i] = q;
    w.raw[i] = k * scale;
    w.rate[i] = rate;
    w.k[i] = own_k;
    w.decay[i] = expf(-0.6065306597126334f * quick_sigmoid(before_decay.get()));
    w.agreed[i] = own_k * bonus;
  }
  int i = tid - (GYRE_TOKEN_THREADS - TILE);
  if (i >= 0 && i < own) {
    int c = h * m.values + first + i;
    Asked asked(m.x, b, m.v + c, base);
    float v;
    if (m.is_first) {
      v = asked.get();
      give(m.first, b, c, base, v);
    } else {
      Asked from(m.first, b, c, base), mix(m.mixed, b, c, base);
      v = asked.get();
      v += (from.get() - v) * quick_sigmoid(mix.get());
    }
    w.v[i] = v;
    give(m.value, b, c, base, v);
  }
  block_barrier();
  float squared = 1.f / (warp_dot(w.raw, w.raw, keys) + m.epsilon);
  if (first == 0 && warp == WARPS - 1) {
    float score = warp_dot(w.q, w.agreed, keys);
    if ((tid & 31) == 0) give(m.score, b, h, base, score);
  }
  float read = 0.f, y = 0.f, v = exists ? w.v[column] : 0.f;
#pragma unroll
  for (int n = 0; n < ROWS; n++) {
    int r = warp + n * WARPS;
    if (r >= keys) break;
    read += w.raw[r] * s[n];
  }
  // Both directions are of unit length.
  read = -squared * column_sum(w, 0, read);
#pragma unroll
  for (int n = 0; n < ROWS; n++) {
    int r = warp + n * WARPS;
    if (r >= keys) break;
    s[n] = w.decay[r] * s[n] + w.rate[r] * w.raw[r] * read + w.k[r] * v;
    y += w.q[r] * s[n];
    if (exists) state[(long)r * m.values] = s[n];
  }
  y = column_sum(w, 1, y) * m.scale;
  if (warp == 0 && exists) give(m.y, b, h * m.values + first + column, base, y);
}

// Calls keep registers in memory, so what is common stands in place.
static __device__ __noinline__ void large_tile(
    const gyre_token_matrix &m, long b, int h, int first, int own, unsigned base, MatrixWork &w) {
  if (m.rule == GYRE_TOKEN_RWKV7) rwkv7_tile<GYRE_TOKEN_KEYS / WARPS>(m, b, h, first, own, base, w);
  else gated_tile<GYRE_TOKEN_KEYS / WARPS>(m, b, h, first, own, base, w);
}

GYRE_DEVICE void matrix_step(
    const gyre_token_matrix &m, int batch, unsigned base, unsigned *count, MatrixWork &w) {
  // As many tiles a head as blocks can take at once; a tile is at most a warp wide.
  int tiles = max((m.values + TILE - 1) / TILE, (int)gridDim.x / (batch * m.heads));
  int width = (m.values + tiles - 1) / tiles;
  tiles = (m.values + width - 1) / width;
  bool is_small = m.keys <= 8 * WARPS;
  for (int unit = blockIdx.x; unit < batch * m.heads * tiles; unit += gridDim.x) {
    if (unit != blockIdx.x) block_barrier();
    int first = unit % tiles * width, h = unit / tiles % m.heads;
    long b = unit / tiles / m.heads;
    int own = min(width, m.values - first);
    if (is_small && m.rule == GYRE_TOKEN_RWKV7) rwkv7_tile<8>(m, b, h, first, own, base, w);
    else if (is_small) gated_tile<8>(m, b, h, first, own, base, w);
    else large_tile(m, b, h, first, own, base, w);
    if (threadIdx.x == 0) count_given(count, own);
  }
}
