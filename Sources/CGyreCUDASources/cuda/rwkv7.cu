// Variants: LANES=1,2,4,8,16
// What surrounds RWKV-7's recurrence, one pass each way: heads of 8 · LANES channels, eight a thread.
//
// Group n of LANES threads takes rows n, n + G, n + 2G … of [batch · tokens · heads], G a multiple of
// the heads, so that it stays with one head and sums the gradients of that head's parameters.
#include "prelude.cuh"

#define ROWS (256 / LANES)
#define SIZE (8 * LANES)
#define EACH(j) _Pragma("unroll") for (int j = 0; j < 8; j++)
#define DECAY_RATE 0.6065306597126334f  // e^-1/2

typedef float Eight[8];

GYRE_DEVICE float lane_sum(float x) {
#pragma unroll
  for (int o = LANES / 2; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
  return x;
}
GYRE_DEVICE void get(const gyre_array &a, long i, Eight &x) {
  if (present(a)) load8(a, i, x);
  else EACH(j) x[j] = 0.f;
}

// A group's rows and its columns of the parameters.
struct Place {
  int lane, group;
  long step, column;
  __device__ __forceinline__ Place(long heads) {
    lane = threadIdx.x % LANES, group = threadIdx.x / LANES;
    step = (long)gridDim.x * ROWS;
    column = ((long)blockIdx.x * ROWS + group) % heads * SIZE + lane * 8;
  }
};

// Sums of `count` parameters of this block's groups to [part, count, heads · SIZE], where a part is
// one group of each head: the block's where it has several, else that of `heads / ROWS` blocks.
template <int COUNT>
GYRE_DEVICE void store_sums(float *to, long heads, const Place &p, const Eight (&sums)[COUNT]) {
  __shared__ float shared[256 * 8];
  long width = heads * SIZE;
  bool shares = ROWS % heads == 0;
  long slot = (long)blockIdx.x * ROWS + p.group;
#pragma unroll
  for (int n = 0; n < COUNT; n++) {
    if (!shares) {
      gyre_array out = {to + (slot / heads * COUNT + n) * width + p.column, GYRE_F32, 0};
      store8(out, 0, sums[n]);
      continue;
    }
    EACH(j) shared[p.group * SIZE + p.lane * 8 + j] = sums[n][j];
    __syncthreads();
    for (long c = threadIdx.x; c < width; c += 256) {
      float s = 0.f;
      for (long g = c / SIZE; g < ROWS; g += heads) s += shared[g * SIZE + c % SIZE];
      to[((long)blockIdx.x * COUNT + n) * width + c] = s;
    }
    __syncthreads();
  }
}

// MARK: keys

struct KeyTerms {
  Eight k, a, u, kappa;
  float scale;
};
GYRE_DEVICE void key_terms(
    const gyre_rwkv7_keys_args &a, long at, const Eight &key_scale, const Eight &rate_bias,
    KeyTerms &t) {
  Eight rate;
  load8(a.key, at, t.k);
  load8(a.rate, at, rate);
  float square = 0.f;
  EACH(j) {
    t.a[j] = sigmoid(rate[j] + rate_bias[j]);
    t.u[j] = t.k[j] * key_scale[j];
    square += t.u[j] * t.u[j];
  }
  t.scale = 1.f / sqrtf(lane_sum(square) + a.epsilon);
  EACH(j) t.kappa[j] = t.u[j] * t.scale;
}

GYRE_KERNEL __launch_bounds__(256) rwkv7_keys(gyre_rwkv7_keys_args a) {
  Place p(a.heads);
  Eight key_scale, key_rate, rate_bias, decay_bias;
  get(a.key_scale, p.column, key_scale);
  get(a.key_rate, p.column, key_rate);
  get(a.rate_bias, p.column, rate_bias);
  get(a.decay_bias, p.column, decay_bias);
  for (long r0 = (long)blockIdx.x * ROWS; r0 < a.rows; r0 += p.step) {
    long r = r0 + p.group;
    bool is_row = r < a.rows;
    long at = (is_row ? r : 0) * SIZE + p.lane * 8;
    KeyTerms t;
    Eight decay, out;
    load8(a.decay, at, decay);
    key_terms(a, at, key_scale, rate_bias, t);
    if (!is_row) continue;
    EACH(j) out[j] = t.k[j] * (1.f + (t.a[j] - 1.f) * key_rate[j]);
    store8(a.written, at, out);
    EACH(j) out[j] = -DECAY_RATE * sigmoid(decay[j] + decay_bias[j]);
    store8(a.log_decay, at, out);
    EACH(j) out[j] = -t.kappa[j];
    store8(a.erase, at, out);
    EACH(j) out[j] = t.kappa[j] * t.a[j];
    store8(a.write, at, out);
  }
}

GYRE_KERNEL __launch_bounds__(256) rwkv7_keys_backward(gyre_rwkv7_keys_args a) {
  Place p(a.heads);
  Eight key_scale, key_rate, rate_bias, decay_bias, sums[4];
  get(a.key_scale, p.column, key_scale);
  get(a.key_rate, p.column, key_rate);
  get(a.rate_bias, p.column, rate_bias);
  get(a.decay_bias, p.column, decay_bias);
#pragma unroll
  for (int n = 0; n < 4; n++) EACH(j) sums[n][j] = 0.f;
  for (long r0 = (long)blockIdx.x * ROWS; r0 < a.rows; r0 += p.step) {
    long r = r0 + p.group;
    bool is_row = r < a.rows;
    long at = (is_row ? r : 0) * SIZE + p.lane * 8;
    KeyTerms t;
    Eight decay, dwritten, ddecay, derase, dwrite, out;
    load8(a.decay, at, decay);
    get(a.dwritten, at, dwritten);
    get(a.dlog_decay, at, ddecay);
    get(a.derase, at, derase);
    get(a.dwrite, at, dwrite);
    key_terms(a, at, key_scale, rate_bias, t);
    // derase becomes the gradient of kappa, dwrite that of the rate before its sigmoid.
    float dot = 0.f;
    EACH(j) {
      derase[j] = t.a[j] * dwrite[j] - derase[j];
      dot += derase[j] * t.kappa[j];
      float da = t.kappa[j] * dwrite[j] + dwritten[j] * t.k[j] * key_rate[j];
      dwrite[j] = da * t.a[j] * (1.f - t.a[j]);
      float s = sigmoid(decay[j] + decay_bias[j]);
      ddecay[j] *= -DECAY_RATE * s * (1.f - s);
    }
    dot = lane_sum(dot);
    if (!is_row) continue;
    EACH(j) {
      float du = t.scale * (derase[j] - t.kappa[j] * dot);
      out[j] = du * key_scale[j] + dwritten[j] * (1.f + (t.a[j] - 1.f) * key_rate[j]);
      sums[0][j] += du * t.k[j];
      sums[1][j] += dwritten[j] * t.k[j] * (t.a[j] - 1.f);
      sums[2][j] += dwrite[j];
      sums[3][j] += ddecay[j];
    }
    store8(a.dkey, at, out);
    store8(a.drate, at, dwrite);
    store8(a.ddecay, at, ddecay);
  }
  store_sums(a.sums, a.heads, p, sums);
}

// MARK: readout

// y becomes the normalised row; 1 / deviation.
GYRE_DEVICE float center(const gyre_rwkv7_readout_args &a, Eight &y) {
  float sum = 0.f, square = 0.f;
  EACH(j) sum += y[j];
  sum = lane_sum(sum) / SIZE;
  EACH(j) {
    y[j] -= sum;
    square += y[j] * y[j];
  }
  float scale = 1.f / sqrtf(lane_sum(square) / SIZE + a.epsilon);
  EACH(j) y[j] *= scale;
  return scale;
}

GYRE_KERNEL __launch_bounds__(256) rwkv7_readout(gyre_rwkv7_readout_args a) {
  Place p(a.heads);
  Eight bonus, weight, bias;
  get(a.bonus, p.column, bonus);
  get(a.weight, p.column, weight);
  get(a.bias, p.column, bias);
  for (long r0 = (long)blockIdx.x * ROWS; r0 < a.rows; r0 += p.step) {
    long r = r0 + p.group;
    bool is_row = r < a.rows;
    long at = (is_row ? r : 0) * SIZE + p.lane * 8;
    Eight y, q, k, v, gate;
    load8(a.y, at, y);
    load8(a.query, at, q);
    load8(a.written, at, k);
    load8(a.value, at, v);
    load8(a.gate, at, gate);
    float score = 0.f;
    EACH(j) score += q[j] * k[j] * bonus[j];
    score = lane_sum(score);
    center(a, y);
    if (!is_row) continue;
    EACH(j) y[j] = (y[j] * weight[j] + bias[j] + score * v[j]) * gate[j];
    store8(a.out, at, y);
  }
}

GYRE_KERNEL __launch_bounds__(256) rwkv7_readout_backward(gyre_rwkv7_readout_args a) {
  Place p(a.heads);
  Eight bonus, weight, bias, sums[3];
  get(a.bonus, p.column, bonus);
  get(a.weight, p.column, weight);
  get(a.bias, p.column, bias);
#pragma unroll
  for (int n = 0; n < 3; n++) EACH(j) sums[n][j] = 0.f;
  for (long r0 = (long)blockIdx.x * ROWS; r0 < a.rows; r0 += p.step) {
    long r = r0 + p.group;
    bool is_row = r < a.rows;
    long at = (is_row ? r : 0) * SIZE + p.lane * 8;
    Eight y, q, k, v, gate, d;
    load8(a.y, at, y);
    load8(a.query, at, q);
    load8(a.written, at, k);
    load8(a.value, at, v);
    load8(a.gate, at, gate);
    load8(a.dout, at, d);
    float score = 0.f, dscore = 0.f, dot = 0.f, total = 0.f;
    EACH(j) score += q[j] * k[j] * bonus[j];
    score = lane_sum(score);
    float scale = center(a, y);
    EACH(j) {
      float z = y[j] * weight[j] + bias[j] + score * v[j], dz = d[j] * gate[j];
      gate[j] = d[j] * z;  // its gradient
      d[j] = dz;
      dscore += dz * v[j];
      dot += dz * weight[j] * y[j];
      total += dz * weight[j];
    }
    dscore = lane_sum(dscore);
    dot = lane_sum(dot) / SIZE;
    total = lane_sum(total) / SIZE;
    if (!is_row) continue;
    store8(a.dgate, at, gate);
    EACH(j) {
      sums[0][j] += dscore * q[j] * k[j];
      sums[1][j] += d[j] * y[j];
      sums[2][j] += d[j];
      y[j] = scale * (d[j] * weight[j] - total - y[j] * dot);
      v[j] = score * d[j];
      float dq = dscore * k[j] * bonus[j];
      k[j] = dscore * q[j] * bonus[j];
      q[j] = dq;
    }
    store8(a.dy, at, y);
    store8(a.dvalue, at, v);
    store8(a.dquery, at, q);
    store8(a.dwritten, at, k);
  }
  store_sums(a.sums, a.heads, p, sums);
}
