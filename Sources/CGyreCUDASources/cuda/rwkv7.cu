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
template <bool HALF> GYRE_DEVICE void get(const gyre_array &a, long i, Eight &x) {
  if (present(a)) get8<HALF>(a, i, x);
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

// The same for a forward pass in which a sequence may have its own parameters: group n then takes head
// n % heads of all tokens of sequence n / heads. All groups of a block take as many steps.
struct Walk : Place {
  long first, sequence, steps;
  template <class Arguments>
  __device__ __forceinline__ Walk(const Arguments &a) : Place(a.heads) {
    const long item = (long)blockIdx.x * ROWS + group;
    if (a.tokens) {
      const long last = a.rows / (a.tokens * a.heads) - 1;
      sequence = item / a.heads;
      first = sequence * a.tokens * a.heads + item % a.heads;
      step = a.heads, steps = a.tokens;
      if (sequence > last) first = a.rows, sequence = last;
    } else {
      sequence = 0, first = item;
      steps = (a.rows - (long)blockIdx.x * ROWS + step - 1) / step;
    }
  }
  GYRE_DEVICE void parameters(const gyre_array &from, Eight &x) const {
    get<false>(from, sequence * from.stride + column, x);
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
  Eight k, a, kappa;
  float scale;
};
template <bool HALF>
GYRE_DEVICE void key_terms(
    const gyre_rwkv7_keys_args &a, long at, const Eight &key_scale, const Eight &rate_bias,
    KeyTerms &t) {
  Eight rate;
  get8<HALF>(a.key, at, t.k);
  get8<HALF>(a.rate, at, rate);
  float square = 0.f;
  EACH(j) {
    t.a[j] = quick_sigmoid(rate[j] + rate_bias[j]);
    t.kappa[j] = t.k[j] * key_scale[j];
    square += t.kappa[j] * t.kappa[j];
  }
  t.scale = 1.f / sqrtf(lane_sum(square) + a.epsilon);
  EACH(j) t.kappa[j] *= t.scale;
}

template <bool HALF> GYRE_DEVICE void keys(const gyre_rwkv7_keys_args &a) {
  const Walk p(a);
  Eight key_scale, key_rate, rate_bias, decay_bias;
  p.parameters(a.key_scale, key_scale);
  p.parameters(a.key_rate, key_rate);
  p.parameters(a.rate_bias, rate_bias);
  p.parameters(a.decay_bias, decay_bias);
  for (long n = 0; n < p.steps; n++) {
    long r = p.first + n * p.step;
    bool is_row = r < a.rows;
    long at = (is_row ? r : 0) * SIZE + p.lane * 8;
    KeyTerms t;
    Eight decay, out;
    get8<HALF>(a.decay, at, decay);
    key_terms<HALF>(a, at, key_scale, rate_bias, t);
    if (!is_row) continue;
    EACH(j) out[j] = t.k[j] * (1.f + (t.a[j] - 1.f) * key_rate[j]);
    put8<HALF>(a.written, at, out);
    EACH(j) out[j] = -DECAY_RATE * quick_sigmoid(decay[j] + decay_bias[j]);
    put8<HALF>(a.log_decay, at, out);
    EACH(j) out[j] = -t.kappa[j];
    put8<HALF>(a.erase, at, out);
    EACH(j) out[j] = t.kappa[j] * t.a[j];
    put8<HALF>(a.write, at, out);
  }
}

template <bool HALF> GYRE_DEVICE void keys_backward(const gyre_rwkv7_keys_args &a) {
  Place p(a.heads);
  Eight key_scale, key_rate, rate_bias, decay_bias, sums[4];
  get<false>(a.key_scale, p.column, key_scale);
  get<false>(a.key_rate, p.column, key_rate);
  get<false>(a.rate_bias, p.column, rate_bias);
  get<false>(a.decay_bias, p.column, decay_bias);
#pragma unroll
  for (int n = 0; n < 4; n++) EACH(j) sums[n][j] = 0.f;
  for (long r0 = (long)blockIdx.x * ROWS; r0 < a.rows; r0 += p.step) {
    long r = r0 + p.group;
    bool is_row = r < a.rows;
    long at = (is_row ? r : 0) * SIZE + p.lane * 8;
    KeyTerms t;
    Eight decay, dwritten, ddecay, derase, dwrite;
    get8<HALF>(a.decay, at, decay);
    get<HALF>(a.dwritten, at, dwritten);
    get<HALF>(a.dlog_decay, at, ddecay);
    get<HALF>(a.derase, at, derase);
    get<HALF>(a.dwrite, at, dwrite);
    if (present(a.dwritten_more)) {
      Eight more;
      get<HALF>(a.dwritten_more, at, more);
      EACH(j) dwritten[j] += more[j];
    }
    key_terms<HALF>(a, at, key_scale, rate_bias, t);
    // derase becomes the gradient of kappa, dwrite that of the rate before its sigmoid.
    float dot = 0.f;
    EACH(j) {
      derase[j] = t.a[j] * dwrite[j] - derase[j];
      dot += derase[j] * t.kappa[j];
      float da = t.kappa[j] * dwrite[j] + dwritten[j] * t.k[j] * key_rate[j];
      dwrite[j] = da * t.a[j] * (1.f - t.a[j]);
      float s = quick_sigmoid(decay[j] + decay_bias[j]);
      ddecay[j] *= -DECAY_RATE * s * (1.f - s);
    }
    dot = lane_sum(dot);
    if (!is_row) continue;
    EACH(j) {
      float du = t.scale * (derase[j] - t.kappa[j] * dot);
      sums[0][j] += du * t.k[j];
      sums[1][j] += dwritten[j] * t.k[j] * (t.a[j] - 1.f);
      sums[2][j] += dwrite[j];
      sums[3][j] += ddecay[j];
      t.k[j] = du * key_scale[j] + dwritten[j] * (1.f + (t.a[j] - 1.f) * key_rate[j]);
    }
    put8<HALF>(a.dkey, at, t.k);
    put8<HALF>(a.drate, at, dwrite);
    put8<HALF>(a.ddecay, at, ddecay);
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

template <bool HALF> GYRE_DEVICE void readout(const gyre_rwkv7_readout_args &a) {
  const Walk p(a);
  Eight bonus, weight, bias;
  p.parameters(a.bonus, bonus);
  p.parameters(a.weight, weight);
  p.parameters(a.bias, bias);
  for (long n = 0; n < p.steps; n++) {
    long r = p.first + n * p.step;
    bool is_row = r < a.rows;
    long at = (is_row ? r : 0) * SIZE + p.lane * 8;
    Eight y, q, k, v, gate;
    get8<HALF>(a.y, at, y);
    get8<HALF>(a.query, at, q);
    get8<HALF>(a.written, at, k);
    get8<HALF>(a.value, at, v);
    get8<HALF>(a.gate, at, gate);
    float score = 0.f;
    EACH(j) score += q[j] * k[j] * bonus[j];
    score = lane_sum(score);
    center(a, y);
    if (!is_row) continue;
    EACH(j) y[j] = (y[j] * weight[j] + bias[j] + score * v[j]) * gate[j];
    put8<HALF>(a.out, at, y);
  }
}

template <bool HALF> GYRE_DEVICE void readout_backward(const gyre_rwkv7_readout_args &a) {
  Place p(a.heads);
  Eight bonus, weight, bias, sums[3];
  get<false>(a.bonus, p.column, bonus);
  get<false>(a.weight, p.column, weight);
  get<false>(a.bias, p.column, bias);
#pragma unroll
  for (int n = 0; n < 3; n++) EACH(j) sums[n][j] = 0.f;
  for (long r0 = (long)blockIdx.x * ROWS; r0 < a.rows; r0 += p.step) {
    long r = r0 + p.group;
    bool is_row = r < a.rows;
    long at = (is_row ? r : 0) * SIZE + p.lane * 8;
    Eight y, q, k, v, gate, d;
    get8<HALF>(a.y, at, y);
    get8<HALF>(a.query, at, q);
    get8<HALF>(a.written, at, k);
    get8<HALF>(a.value, at, v);
    get8<HALF>(a.gate, at, gate);
    get8<HALF>(a.dout, at, d);
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
    put8<HALF>(a.dgate, at, gate);
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
    put8<HALF>(a.dy, at, y);
    put8<HALF>(a.dvalue, at, v);
    put8<HALF>(a.dquery, at, q);
    put8<HALF>(a.dwritten, at, k);
  }
  store_sums(a.sums, a.heads, p, sums);
}

// MARK: entries

GYRE_DEVICE bool all_half(const gyre_rwkv7_keys_args &a) {
  return is_half(a.key) && is_half(a.rate) && is_half(a.decay) && is_half(a.written) &&
         is_half(a.dwritten) && is_half(a.dwritten_more) && is_half(a.dlog_decay) && is_half(a.derase) && is_half(a.dwrite);
}
GYRE_DEVICE bool all_half(const gyre_rwkv7_readout_args &a) {
  return is_half(a.y) && is_half(a.query) && is_half(a.written) && is_half(a.value) &&
         is_half(a.gate) && is_half(a.dout);
}
#define ENTRY(name, args)                                       \
  GYRE_KERNEL __launch_bounds__(256, 2) rwkv7_##name(args a) {  \
    if (all_half(a)) name<true>(a);                             \
    else name<false>(a);                                        \
  }
ENTRY(keys, gyre_rwkv7_keys_args)
ENTRY(keys_backward, gyre_rwkv7_keys_args)
ENTRY(readout, gyre_rwkv7_readout_args)
ENTRY(readout_backward, gyre_rwkv7_readout_args)
