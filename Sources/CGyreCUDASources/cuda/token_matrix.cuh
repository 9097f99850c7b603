// One token of a recurrence with a matrix state a head. A block takes up to 32 columns of one head's
// state: a lane a column, a warp some rows; what all columns share lies in shared memory.
#pragma once
#include "token_operand.cuh"

#define TILE GYRE_TOKEN_TILE

struct MatrixWork {
  float q[GYRE_TOKEN_KEYS], k[GYRE_TOKEN_KEYS], raw[GYRE_TOKEN_KEYS];
  float rate[GYRE_TOKEN_KEYS], decay[GYRE_TOKEN_KEYS], agreed[GYRE_TOKEN_KEYS];  // RWKV-7; rates times raw keys
  float v[TILE], sums[2][WARPS][TILE], dots[4][WARPS];
  float scalar[2];
};

// Columns of a head of a sequence: what a block takes.
struct Tile {
  int b, h, key_head, first, own;
  GYRE_DEVICE Tile(const gyre_token_matrix &m)
      : b(m.sequence), h(m.head), key_head(m.key_head), first(m.column), own(m.own) {}
  GYRE_DEVICE void find(const gyre_token_matrix &m, int unit) {
    b = unit / m.tiles / m.heads, h = unit / m.tiles % m.heads, first = unit % m.tiles * m.width;
    key_head = h / (m.heads / max(m.key_heads, 1));
    own = min(m.width, m.values - first);
  }
};
GYRE_DEVICE int units_of(const gyre_token_matrix &m, int batch) { return batch * m.heads * m.tiles; }

// The tiles and the block's first one, a phase ahead: divisions take as long as a load.
GYRE_DEVICE void plan_tiles(gyre_token_matrix &m, int batch) {
  // As many tiles a head as blocks can take at once; a tile is at most a warp wide.
  int tiles = max((m.values + TILE - 1) / TILE, (int)gridDim.x / (batch * m.heads));
  m.width = (m.values + tiles - 1) / tiles;
  m.tiles = (m.values + m.width - 1) / m.width;
  Tile t(m);
  t.find(m, blockIdx.x);
  m.sequence = t.b, m.head = t.h, m.key_head = t.key_head, m.column = t.first;
  m.own = (int)blockIdx.x < units_of(m, batch) ? t.own : 0;
}

// What a channel's short convolution has from tokens before, asked for and later added up, and the weight of
// this one's number.
struct Past {
  float x[3] = {0.f, 0.f, 0.f}, w[3] = {1.f, 1.f, 1.f}, bias = 0.f, last = 1.f;
  GYRE_DEVICE void ask(const gyre_token_matrix &m, long b, int c) {
    if (m.taps == 0) return;
    const float *window = m.window + b * (m.taps - 1) * m.channels + c;
    const float *weight = m.taps_weight + (long)c * m.taps;
    if (m.taps_bias) bias = m.taps_bias[c];
    if (m.taps == 4) {
#pragma unroll
      for (int j = 0; j < 3; j++) x[j] = fresh(window + (long)j * m.channels), w[j] = weight[j];
      last = weight[3];
      return;
    }
    last = weight[m.taps - 1];
#pragma unroll 1
    for (int j = 0; j + 1 < m.taps; j++) x[0] += fresh(window + (long)j * m.channels) * weight[j];
  }
  GYRE_DEVICE float sum() const { return bias + x[0] * w[0] + x[1] * w[1] + x[2] * w[2]; }
};

// The sum over the K rows of each column, to all its threads.
GYRE_DEVICE float added_up(const MatrixWork &w, int place) {
  int lane = this_thread() & 31;
  float x = 0.f;
#pragma unroll
  for (int i = 0; i < WARPS; i++) x += w.sums[place][i][lane];
  return x;
}
// ln(1 + e^x), a few roundings off: one thread of a block makes it while all others wait.
GYRE_DEVICE float quick_softplus(float x) {
  // ln(1 + e) = 2 artanh(e / (2 + e)), at most 1/3.
  float e = __expf(-fabsf(x)), s = __fdividef(e, 2.f + e), u = s * s;
  float tail = u * (1.f / 3 + u * (1.f / 5 + u * (1.f / 7 + u * (1.f / 9 + u * (1.f / 11 + u * (1.f / 13))))));
  return fmaxf(x, 0.f) + 2.f * (s + s * tail);
}

// What a thread has of a tile besides channels: a number of others and up to two parameters.
struct Scalar {
  const char *from = nullptr;
  unsigned stamp = 0;
  Stamped given = {0.f, 0};
  float first = 0.f, second = 0.f;
  GYRE_DEVICE void ask(
      const gyre_token_vector &v, long b, int i, unsigned base, const float *one, const float *two) {
    if (present(v)) {
      from = place(v, b, i), stamp = base + v.phase;
      given = read_stamped(from);
    }
    if (one) first = *one;
    if (two) second = *two;
  }
  GYRE_DEVICE float get() {
    for (int waits = 0; given.stamp != stamp; wait_again(waits)) given = read_stamped(from);
    return given.x;
  }
};

// Once a tile's outputs are given.
GYRE_DEVICE void count_tile(const Tile &t) {
  if (this_thread() == 0) count_given(TOKEN_SHARED.counts + now(), t.own);
}

// A tile of a head, for linear attention (Mamba-2) and the gated delta rule. A warp has ROWS rows; one thread a
// channel makes q, k, v; two the scalars. All that the token does not change is asked for before its numbers.
// The sums that y needs are those of the old state: S' q = d S' q + (k' q) b v, so one barrier is between
// the channels and y, and the state changes after it.
template <int ROWS, bool USUAL>
GYRE_DEVICE void gated_tile(const gyre_token_matrix &m, Tile t, unsigned base, MatrixWork &w) {
  const int N = (2 * ROWS * WARPS + TILE + GYRE_TOKEN_THREADS - 1) / GYRE_TOKEN_THREADS;
  // The first warps come last: they end the outputs of the phase before.
  const int last = GYRE_TOKEN_THREADS - 1;
  int tid = this_thread(), row = (tid >> 5) * ROWS, c = tid & 31, keys = m.keys;
  bool exists = c < t.own, is_delta = m.rule == GYRE_TOKEN_DELTA;
  long b = t.b;
  float *state = m.state + ((b * m.heads + t.h) * keys + row) * m.values + t.first + c;
  int rows = exists ? keys - row : 0, pitch = m.values;
  // What others give is asked for first: those of warps that have no channels of heads of up to 64 keys.
  Scalar scalar;
  if (tid == 64) scalar.ask(m.gate, b, t.h, base, m.log_rate + t.h, m.step_bias ? m.step_bias + t.h : nullptr);
  if (tid == 32 && is_delta) scalar.ask(m.write, b, t.h, base, nullptr, nullptr);
  if (tid < t.own)
    scalar.ask(m.outer, b, t.h * m.values + t.first + c, base,
               m.skip ? m.skip + (m.skip_per_channel ? t.h * m.values + t.first + c : t.h) : nullptr, nullptr);
  float s[ROWS];
#pragma unroll
  for (int i = 0; i < ROWS; i++) s[i] = i < rows ? fresh(state + i * pitch) : 0.f;
  Past past[N];
  const char *from[N];
  float now[N];
  unsigned stamps[N], stamp = base + m.x.phase;
#pragma unroll
  for (int n = 0; n < N; n++) {
    int i = last - tid + n * GYRE_TOKEN_THREADS;
    int channel = i < keys       ? m.q + t.key_head * keys + i
                  : i < 2 * keys ? m.k + (t.key_head - 1) * keys + i
                                 : m.v + t.h * m.values + t.first + i - 2 * keys;
    from[n] = place(m.x, b, channel);
    now[n] = 0.f, stamps[n] = stamp;
    if (i >= 2 * keys + t.own) continue;
    past[n].ask(m, b, channel);
    Stamped first = read_stamped(from[n]);
    now[n] = first.x, stamps[n] = first.stamp;
  }
#pragma unroll 1
  for (int i = keys + tid; i < ROWS * WARPS; i += GYRE_TOKEN_THREADS) w.q[i] = w.k[i] = 0.f;
  float gate = 1.f;
  if (tid == 64) {
    float rate = -expf(scalar.first), step = quick_softplus(scalar.get() + scalar.second);
    step = fminf(fmaxf(step, m.step_low), m.step_high);
    w.scalar[0] = __expf(rate * step);
    if (!is_delta) w.scalar[1] = step;
  } else if (tid == 32 && is_delta) {
    w.scalar[1] = quick_sigmoid(scalar.get()) * (m.writes_twice ? 2.f : 1.f);
  }
  if (tid < t.own && present(m.outer)) gate = usual(m.outer_function, scalar.get());
#pragma unroll
  for (int n = 0; n < N; n++) {
    int i = last - tid + n * GYRE_TOKEN_THREADS;
    if (i >= 2 * keys + t.own) continue;
    float sum = past[n].sum();
    for (int waits = 0; stamps[n] != stamp; wait_again(waits)) {
      Stamped again = read_stamped(from[n]);
      now[n] = again.x, stamps[n] = again.stamp;
    }
    float x = sum + now[n] * past[n].last;
    float *to = i < keys ? w.q + i : i < 2 * keys ? w.k + i - keys : w.v + i - 2 * keys;
    *to = USUAL ? usual(m.function, x) : unary(m.function, x);
  }
  block_barrier();
  float of_k = 0.f, of_q = 0.f, qq = 0.f, kk = 0.f, qk = 0.f;
#pragma unroll
  for (int i = 0; i < ROWS; i += 4) {
    float4 q4 = *(const float4 *)(w.q + row + i), k4 = *(const float4 *)(w.k + row + i);
    float q[4] = {q4.x, q4.y, q4.z, q4.w}, k[4] = {k4.x, k4.y, k4.z, k4.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      of_k += k[j] * s[i + j], of_q += q[j] * s[i + j];
      qq += q[j] * q[j], kk += k[j] * k[j], qk += q[j] * k[j];
    }
  }
  w.sums[0][tid >> 5][c] = of_k, w.sums[1][tid >> 5][c] = of_q;
  if (c == 0) w.dots[0][tid >> 5] = qq, w.dots[1][tid >> 5] = kk, w.dots[2][tid >> 5] = qk;
  block_barrier();
  float decay = w.scalar[0], v = exists ? w.v[c] : 0.f, added = v, unit = 1.f;
  if (is_delta) {
    unit = rsqrtf(sum_of_eight(w.dots[1]) + m.epsilon);
    added -= decay * unit * added_up(w, 0);
  }
  added *= w.scalar[1] * unit;
  if (tid < t.own) {
    float y = decay * added_up(w, 1) + sum_of_eight(w.dots[2]) * added, scale = m.scale;
    if (is_delta) scale *= rsqrtf(sum_of_eight(w.dots[0]) + m.epsilon);
    give(m.y, b, t.h * m.values + t.first + c, base, (y * scale + v * scalar.first) * gate);
  }
  count_tile(t);
#pragma unroll
  for (int i = 0; i < ROWS; i++)
    if (i < rows) state[i * pitch] = decay * s[i] + w.k[row + i] * added;
}

// RWKV-7: S' = diag(d) S + a r (−r' S) / r² + k v' with r the raw key and a its rate; y too needs sums of the old
// state alone: S'' q = (d q)' S + (a r)' q (−r' S) / r² + k' q v.
template <int ROWS>
GYRE_DEVICE void rwkv7_tile(const gyre_token_matrix &m, Tile t, unsigned base, MatrixWork &w) {
  int h = t.h, first = t.first, own = t.own;
  long b = t.b;
  int tid = this_thread(), warp = tid >> 5, row = warp * ROWS, column = tid & 31, keys = m.keys;
  int rows = column < own ? keys - row : 0, pitch = m.values;
  float *state = m.state + ((b * m.heads + h) * keys + row) * m.values + first + column;
  float s[ROWS];
#pragma unroll
  for (int i = 0; i < ROWS; i++) s[i] = i < rows ? fresh(state + i * pitch) : 0.f;
  // The first warps come last: they end the outputs of the phase before.
  int i = GYRE_TOKEN_THREADS - 1 - tid;
  if (i < keys) {
    int c = h * keys + i;
    float scale = m.key_scale[c], key_rate = m.key_rate[c], bonus = m.bonus[c];
    Asked asked_k(m.x, b, m.k + c, base), asked_q(m.x, b, m.q + c, base);
    Asked before_rate(m.rate, b, c, base), before_decay(m.decay, b, c, base);
    float k = asked_k.get(), q = asked_q.get();
    float rate = quick_sigmoid(before_rate.get()), own_k = k * ((rate - 1.f) * key_rate + 1.f);
    w.q[i] = q;
    w.raw[i] = k * scale;
    w.rate[i] = rate * k * scale;
    w.k[i] = own_k;
    w.decay[i] = __expf(-0.6065306597126334f * quick_sigmoid(before_decay.get()));
    w.agreed[i] = own_k * bonus;
  } else if (i < ROWS * WARPS) {
    w.q[i] = w.raw[i] = w.rate[i] = w.k[i] = w.decay[i] = w.agreed[i] = 0.f;
  }
  i = tid - GYRE_TOKEN_THREADS / 2;
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
  float read = 0.f, kept = 0.f, rr = 0.f, qr = 0.f, qk = 0.f, score = 0.f;
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    int r = row + i;
    float q = w.q[r], raw = w.raw[r];
    read += raw * s[i], kept += q * w.decay[r] * s[i];
    rr += raw * raw, qr += q * w.rate[r], qk += q * w.k[r], score += q * w.agreed[r];
  }
  w.sums[0][warp][column] = read, w.sums[1][warp][column] = kept;
  if (column == 0) w.dots[0][warp] = rr, w.dots[1][warp] = qr, w.dots[2][warp] = qk, w.dots[3][warp] = score;
  block_barrier();
  float v = column < own ? w.v[column] : 0.f;
  // Both directions are of unit length.
  read = -__fdividef(added_up(w, 0), sum_of_eight(w.dots[0]) + m.epsilon);
  if (tid < own) {
    float y = added_up(w, 1) + sum_of_eight(w.dots[1]) * read + sum_of_eight(w.dots[2]) * v;
    give(m.y, b, h * m.values + first + column, base, y * m.scale);
  }
  if (first == 0 && tid == GYRE_TOKEN_THREADS - 32) give(m.score, b, h, base, sum_of_eight(w.dots[3]));
  count_tile(t);
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    int r = row + i;
    if (i < rows) state[i * pitch] = w.decay[r] * s[i] + w.rate[r] * read + w.k[r] * v;
  }
}

// Calls keep registers in memory, so what is common stands in place.
static __device__ __noinline__ void other_tile(
    const gyre_token_matrix &m, Tile t, unsigned base, MatrixWork &w) {
  if (m.rule == GYRE_TOKEN_RWKV7) rwkv7_tile<GYRE_TOKEN_KEYS / WARPS>(m, t, base, w);
  else gated_tile<GYRE_TOKEN_KEYS / WARPS, false>(m, t, base, w);
}

// Called: so it has registers of its own.
static __device__ __noinline__ void matrix_step(int batch) {
  const gyre_token_matrix &m = phase_now().matrix;
  unsigned base = TOKEN_WORD(base);
  MatrixWork &w = *(MatrixWork *)operands_of_block();
  Tile t(m);
  bool is_small = m.keys <= 8 * WARPS;
  if (t.own == 0) block_barrier();
  for (int unit = blockIdx.x; t.own > 0;) {
    if (is_small && m.rule == GYRE_TOKEN_RWKV7) rwkv7_tile<8>(m, t, base, w);
    else if (is_small && is_usual(m.function)) gated_tile<8, true>(m, t, base, w);
    else other_tile(m, t, base, w);
    unit += gridDim.x;
    if (unit >= units_of(m, batch)) break;
    block_barrier();
    t.find(m, unit);
  }
  // Behind a barrier, so all warps are past the phase before.
  begin_phase();
}
