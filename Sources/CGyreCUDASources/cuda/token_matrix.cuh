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
GYRE_DEVICE float stream_value(const gyre_token_matrix &m, long b, int c) {
  float x = fresh(m.x, b, c);
  if (m.taps > 0) {
    const float *window = m.window + b * (m.taps - 1) * m.channels + c;
    float past[GYRE_TOKEN_TAPS];
    unsigned w[GYRE_TOKEN_TAPS], bias = 0;
    long first = (long)c * m.taps;
    if (m.taps == 4) {
#pragma unroll
      for (int j = 0; j < 3; j++) past[j] = fresh(window + (long)j * m.channels);
#pragma unroll
      for (int j = 0; j < 4; j++) w[j] = bits_at(m.taps_weight, first + j);
    }
    if (present(m.taps_bias)) bias = bits_at(m.taps_bias, c);
    float sum = present(m.taps_bias) ? number(m.taps_bias, bias) : 0.f;
    if (m.taps == 4) {
#pragma unroll
      for (int j = 0; j < 4; j++) sum += (j < 3 ? past[j] : x) * number(m.taps_weight, w[j]);
    } else {
#pragma unroll 1
      for (int j = 0; j < m.taps; j++)
        sum += (j + 1 < m.taps ? fresh(window + (long)j * m.channels) : x) *
               load(m.taps_weight, first + j);
    }
    x = sum;
  }
  return m.function == SILU ? quick_silu(x) : unary(m.function, x);
}

// The sum over the K rows of each column, to all its threads. Two uses in turn need no second barrier:
// each has its place.
GYRE_DEVICE float column_sum(MatrixWork &w, int place, float x) {
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
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
  for (int i = threadIdx.x & 31; i < n; i += 32) sum += x[i] * y[i];
  return warp_sum(sum);
}

// A tile of a head, for linear attention (Mamba-2) and the gated delta rule: one thread a channel makes
// q, k, v; one the scalars.
template <int ROWS>
GYRE_DEVICE void gated_tile(
    const gyre_token_matrix &m, long b, int h, int first, int own, MatrixWork &w) {
  int tid = threadIdx.x, warp = tid >> 5, c = tid & 31, keys = m.keys;
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
    float gate = fresh(m.gate, b, h), write = is_delta ? fresh(m.write, b, h) : 0.f;
    unsigned rate = bits_at(m.log_rate, h), bias = present(m.step_bias) ? bits_at(m.step_bias, h) : 0;
    float step = value<SOFTPLUS>(gate + (present(m.step_bias) ? number(m.step_bias, bias) : 0.f));
    step = fminf(fmaxf(step, m.step_low), m.step_high);
    w.scalar[0] = expf(-expf(number(m.log_rate, rate)) * step);
    w.scalar[1] = is_delta ? sigmoid(write) * (m.writes_twice ? 2.f : 1.f) : step;
  }
  for (int i = tid; i < 2 * keys + own; i += GYRE_TOKEN_THREADS) {
    int channel = i < keys       ? m.q + key_head * keys + i
                  : i < 2 * keys ? m.k + (key_head - 1) * keys + i
                                 : m.v + h * m.values + first + i - 2 * keys;
    float *to = i < keys ? w.q + i : i < 2 * keys ? w.k + i - keys : w.v + i - 2 * keys;
    *to = stream_value(m, b, channel);
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
    if (present(m.skip)) y += v * load(m.skip, m.skip_per_channel ? h * m.values + first + c : h);
    m.y.data[b * m.y.stride + h * m.values + first + c] = y;
  }
}

template <int ROWS>
GYRE_DEVICE void rwkv7_tile(
    const gyre_token_matrix &m, long b, int h, int first, int own, MatrixWork &w) {
  int tid = threadIdx.x, warp = tid >> 5, column = tid & 31, keys = m.keys;
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
    float k = fresh(m.x, b, m.k + c), q = fresh(m.x, b, m.q + c);
    float before_rate = fresh(m.rate, b, c), before_decay = fresh(m.decay, b, c);
    unsigned scale = bits_at(m.key_scale, c), key_rate = bits_at(m.key_rate, c);
    unsigned bonus = bits_at(m.bonus, c);
    float rate = quick_sigmoid(before_rate), own_k = k * ((rate - 1.f) * number(m.key_rate, key_rate) + 1.f);
    w.q[i] = q;
    w.raw[i] = k * number(m.key_scale, scale);
    w.rate[i] = rate;
    w.k[i] = own_k;
    w.decay[i] = expf(-0.6065306597126334f * sigmoid(before_decay));
    w.agreed[i] = own_k * number(m.bonus, bonus);
  }
  int i = tid - (GYRE_TOKEN_THREADS - TILE);
  if (i >= 0 && i < own) {
    int c = h * m.values + first + i;
    float v = fresh(m.x, b, m.v + c);
    if (m.is_first) {
      m.first.data[b * m.first.stride + c] = v;
    } else {
      float from = fresh(m.first, b, c), mix = fresh(m.mixed, b, c);
      v += (from - v) * sigmoid(mix);
    }
    w.v[i] = v;
    m.value.data[b * m.value.stride + c] = v;
  }
  block_barrier();
  float squared = 1.f / (warp_dot(w.raw, w.raw, keys) + m.epsilon);
  if (first == 0 && warp == WARPS - 1) {
    float score = warp_dot(w.q, w.agreed, keys);
    if ((tid & 31) == 0) m.score.data[b * m.score.stride + h] = score;
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
  if (warp == 0 && exists) m.y.data[b * m.y.stride + h * m.values + first + column] = y;
}

// Calls keep registers in memory, so what is common stands in place.
static __device__ __noinline__ void large_tile(
    const gyre_token_matrix &m, long b, int h, int first, int own, MatrixWork &w) {
  if (m.rule == GYRE_TOKEN_RWKV7) rwkv7_tile<GYRE_TOKEN_KEYS / WARPS>(m, b, h, first, own, w);
  else gated_tile<GYRE_TOKEN_KEYS / WARPS>(m, b, h, first, own, w);
}

GYRE_DEVICE void matrix_step(const gyre_token_matrix &m, int batch, MatrixWork &w) {
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
    if (is_small && m.rule == GYRE_TOKEN_RWKV7) rwkv7_tile<8>(m, b, h, first, own, w);
    else if (is_small) gated_tile<8>(m, b, h, first, own, w);
    else large_tile(m, b, h, first, own, w);
  }
}
