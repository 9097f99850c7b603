// One token of a recurrence with a matrix state a head. A block takes 16 columns of one head's state:
// thread (row group, column); what all columns share lies in shared memory.
#pragma once
#include "token_operand.cuh"

#define TILE GYRE_TOKEN_TILE
#define GROUPS (GYRE_TOKEN_THREADS / TILE)
#define STATE_ROWS (GYRE_TOKEN_KEYS / GROUPS)

struct MatrixWork {
  float q[GYRE_TOKEN_KEYS], k[GYRE_TOKEN_KEYS], a[GYRE_TOKEN_KEYS], b[GYRE_TOKEN_KEYS];
  float d[GYRE_TOKEN_KEYS], raw[GYRE_TOKEN_KEYS];
  float v[TILE], plain[TILE], sums[WARPS][TILE];
  float scalar[4];
};

// Channel c of the streams, through the short convolution where there is one.
static __device__ __noinline__ float stream_value(const gyre_token_matrix &m, long b, int c) {
  float x = fresh(m.x, b, c);
  if (m.taps > 0) {
    const float *window = m.window + b * (m.taps - 1) * m.channels + c;
    float past[GYRE_TOKEN_TAPS], w[GYRE_TOKEN_TAPS];
#pragma unroll
    for (int j = 0; j < GYRE_TOKEN_TAPS; j++) {
      past[j] = j + 1 < m.taps ? fresh(window + (long)j * m.channels) : x;
      w[j] = j < m.taps ? load(m.taps_weight, (long)c * m.taps + j) : 0.f;
    }
    x = load_or(m.taps_bias, c, 0.f);
#pragma unroll
    for (int j = 0; j < GYRE_TOKEN_TAPS; j++) x += past[j] * w[j];
  }
  return unary(m.function, x);
}

// The sum over the K rows of each column, to all its threads.
GYRE_DEVICE float column_sum(MatrixWork &w, float x) {
  x += __shfl_xor_sync(~0u, x, 16);
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  if (lane < TILE) w.sums[warp][lane] = x;
  __syncthreads();
  x = 0.f;
#pragma unroll
  for (int i = 0; i < WARPS; i++) x += w.sums[i][lane & (TILE - 1)];
  __syncthreads();
  return x;
}
// The sum of x[i] * y[i] over the keys, by one warp.
GYRE_DEVICE float warp_dot(const float *x, const float *y, int n) {
  float sum = 0.f;
  for (int i = threadIdx.x & 31; i < n; i += 32) sum += x[i] * y[i];
  return warp_sum(sum);
}

// What a head's step takes, for linear attention (Mamba-2) and the gated delta rule.
static __device__ __noinline__ void prepare_gated(const gyre_token_matrix &m, long b, int h, int first, MatrixWork &w) {
  int tid = threadIdx.x, warp = tid >> 5;
  int key_head = h / (m.heads / m.key_heads);
  for (int i = tid; i < 2 * m.keys + TILE; i += GYRE_TOKEN_THREADS) {
    if (i < m.keys) w.q[i] = stream_value(m, b, m.q + key_head * m.keys + i);
    else if (i < 2 * m.keys) w.raw[i - m.keys] = stream_value(m, b, m.k + key_head * m.keys + i - m.keys);
    else if (first + i - 2 * m.keys < m.values)
      w.v[i - 2 * m.keys] = stream_value(m, b, m.v + h * m.values + first + i - 2 * m.keys);
  }
  __syncthreads();
  if (warp == 0) {
    float s = warp_dot(w.q, w.q, m.keys);
    if (tid == 0) w.scalar[0] = m.rule == GYRE_TOKEN_DELTA ? 1.f / sqrtf(s + m.epsilon) : 1.f;
  } else if (warp == 1) {
    float s = warp_dot(w.raw, w.raw, m.keys);
    if ((tid & 31) == 0) w.scalar[1] = m.rule == GYRE_TOKEN_DELTA ? 1.f / sqrtf(s + m.epsilon) : 1.f;
  } else if (tid == 64) {
    float step = value<SOFTPLUS>(fresh(m.gate, b, h) + load_or(m.step_bias, h, 0.f));
    step = fminf(fmaxf(step, m.step_low), m.step_high);
    w.scalar[2] = expf(-expf(load(m.log_rate, h)) * step);
    w.scalar[3] = m.rule == GYRE_TOKEN_DELTA
                      ? sigmoid(fresh(m.write, b, h)) * (m.writes_twice ? 2.f : 1.f) : step;
  }
  __syncthreads();
  float decay = w.scalar[2], write = w.scalar[3];
  for (int i = tid; i < m.keys; i += GYRE_TOKEN_THREADS) {
    float k = w.raw[i] * w.scalar[1];
    w.q[i] *= w.scalar[0];
    w.d[i] = decay;
    if (m.rule == GYRE_TOKEN_DELTA) {
      w.a[i] = decay * k;
      w.b[i] = -write * k;
      w.k[i] = write * k;
    } else {
      w.a[i] = w.b[i] = 0.f;
      w.k[i] = k;
    }
  }
  if (tid < TILE) {
    w.plain[tid] = w.v[tid];
    if (m.rule == GYRE_TOKEN_LINEAR) w.v[tid] *= write;  // the step
  }
  __syncthreads();
}

static __device__ __noinline__ void prepare_rwkv7(const gyre_token_matrix &m, long b, int h, int first, MatrixWork &w) {
  int tid = threadIdx.x, warp = tid >> 5;
  for (int i = tid; i < m.keys; i += GYRE_TOKEN_THREADS) {
    int c = h * m.keys + i;
    float k = fresh(m.x, b, m.k + c), rate = sigmoid(fresh(m.rate, b, c));
    w.q[i] = fresh(m.x, b, m.q + c);
    w.raw[i] = k * load(m.key_scale, c);
    w.b[i] = rate;
    w.k[i] = k * ((rate - 1.f) * load(m.key_rate, c) + 1.f);
    w.d[i] = expf(-0.6065306597126334f * sigmoid(fresh(m.decay, b, c)));
    w.a[i] = w.k[i] * load(m.bonus, c);
  }
  if (tid >= GYRE_TOKEN_THREADS - TILE) {
    int i = tid - (GYRE_TOKEN_THREADS - TILE), c = h * m.values + first + i;
    if (first + i < m.values) {
      float v = fresh(m.x, b, m.v + c);
      if (m.is_first) m.first.data[b * m.first.stride + c] = v;
      else v += (fresh(m.first, b, c) - v) * sigmoid(fresh(m.mixed, b, c));
      w.v[i] = v;
      m.value.data[b * m.value.stride + c] = v;
    }
  }
  __syncthreads();
  if (warp == 0) {
    float s = warp_dot(w.raw, w.raw, m.keys);
    if (tid == 0) w.scalar[0] = 1.f / sqrtf(s + m.epsilon);
  } else if (warp == 1) {
    float s = warp_dot(w.q, w.a, m.keys);
    if ((tid & 31) == 0 && first == 0) m.score.data[b * m.score.stride + h] = s;
  }
  __syncthreads();
  for (int i = tid; i < m.keys; i += GYRE_TOKEN_THREADS) {
    float direction = w.raw[i] * w.scalar[0];
    w.a[i] = -direction;
    w.b[i] *= direction;
  }
  __syncthreads();
}

static __device__ __noinline__ void matrix_step(const gyre_token_matrix &m, int batch, MatrixWork &w) {
  int tiles = (m.values + TILE - 1) / TILE;
  int c = threadIdx.x & (TILE - 1), group = threadIdx.x / TILE;
  for (int unit = blockIdx.x; unit < batch * m.heads * tiles; unit += gridDim.x) {
    int first = unit % tiles * TILE, h = unit / tiles % m.heads;
    long b = unit / tiles / m.heads;
    bool exists = first + c < m.values;
    float *state = m.state + (b * m.heads + h) * m.keys * m.values + first + c;
    float s[STATE_ROWS];
#pragma unroll
    for (int i = 0; i < STATE_ROWS; i++) {
      int r = group + i * GROUPS;
      s[i] = exists && r < m.keys ? fresh(state + (long)r * m.values) : 0.f;
    }
    if (m.rule == GYRE_TOKEN_RWKV7) prepare_rwkv7(m, b, h, first, w);
    else prepare_gated(m, b, h, first, w);
    float read = 0.f, y = 0.f, v = exists ? w.v[c] : 0.f;
    if (m.rule != GYRE_TOKEN_LINEAR) {
#pragma unroll
      for (int i = 0; i < STATE_ROWS; i++) {
        int r = group + i * GROUPS;
        if (r < m.keys) read += w.a[r] * s[i];
      }
      read = column_sum(w, read);
    }
#pragma unroll
    for (int i = 0; i < STATE_ROWS; i++) {
      int r = group + i * GROUPS;
      if (r >= m.keys) continue;
      s[i] = w.d[r] * s[i] + w.b[r] * read + w.k[r] * v;
      y += w.q[r] * s[i];
      if (exists) state[(long)r * m.values] = s[i];
    }
    y = column_sum(w, y) * m.scale;
    if (present(m.skip))
      y += w.plain[c] * load(m.skip, m.skip_per_channel ? h * m.values + first + (exists ? c : 0) : h);
    if (exists && group == 0) m.y.data[b * m.y.stride + h * m.values + first + c] = y;
    __syncthreads();
  }
}
