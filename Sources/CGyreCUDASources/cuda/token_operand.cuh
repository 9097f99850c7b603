// Operands of products in shared memory: every block makes them anew from vectors of a few thousand
// floats, which costs less than one more wait of the grid.
#pragma once
#include "functions.cuh"
#include "token_stream.cuh"

// Called, not copied to every place: these are long.
static __device__ __noinline__ float unary(int function, float x) {
  switch (function) {
    case RELU: return value<RELU>(x);
    case RELU_SQUARED: return value<RELU_SQUARED>(x);
    case SILU: return value<SILU>(x);
    case GELU_TANH: return value<GELU_TANH>(x);
    case GELU: return value<GELU>(x);
    case SIGMOID: return value<SIGMOID>(x);
    case TANH: return value<TANH>(x);
    case EXP: return value<EXP>(x);
    case SOFTPLUS: return value<SOFTPLUS>(x);
    case SQUARE: return value<SQUARE>(x);
    default: return x;
  }
}

// Element e of what a norm sees.
GYRE_DEVICE float norm_input(const gyre_token_operand &o, long b, int e) {
  float x = fresh(o.x, b, e);
  return o.gate == 2 ? x * unary(o.function, fresh(o.z, b, e)) : x;
}
// What is added to and multiplies the normalised element e.
struct After {
  float weight, bias, factor;
  GYRE_DEVICE After(const gyre_token_operand &o, long b, int e) {
    int at = o.period == o.size ? e : e % o.period;
    weight = load_or(o.weight, at, 1.f);
    bias = load_or(o.bias, at, 0.f);
    if (present(o.v)) bias += fresh(o.v, b, e) * fresh(o.score, b, e / o.group);
    factor = o.gate == 1 ? unary(o.function, fresh(o.z, b, e)) : 1.f;
  }
  GYRE_DEVICE float operator()(float x) const { return (x * weight + bias) * factor; }
};

// Four elements whose loads are all under way before the first is converted.
struct RawFour {
  uint4 u;
  GYRE_DEVICE void read(const gyre_array &a, int i) {
    if (a.dtype == GYRE_F32) {
      u = *(const uint4 *)((const float *)a.data + i);
    } else {
      uint2 w = *(const uint2 *)((const unsigned short *)a.data + i);
      u.x = w.x, u.y = w.y;
    }
  }
  GYRE_DEVICE float4 number(int dtype) const {
    if (dtype == GYRE_F32)
      return make_float4(__uint_as_float(u.x), __uint_as_float(u.y), __uint_as_float(u.z),
                         __uint_as_float(u.w));
    if (dtype == GYRE_BF16) return make_float4(low(u.x), high(u.x), low(u.y), high(u.y));
    return make_float4(
        f16_to_float((unsigned short)u.x), f16_to_float((unsigned short)(u.x >> 16)),
        f16_to_float((unsigned short)u.y), f16_to_float((unsigned short)(u.y >> 16)));
  }
};
GYRE_DEVICE bool lies_at(const void *p, int bytes) { return ((unsigned long)p & (bytes - 1)) == 0; }
// Whether fours can be read at once.
GYRE_DEVICE bool is_wide(const gyre_token_vector &v) {
  return lies_at(v.data, 16) && (M == 1 || v.stride % 4 == 0);
}
GYRE_DEVICE bool is_wide_fours(const gyre_array &a) { return lies_at(a.data, a.dtype == GYRE_F32 ? 16 : 8); }
GYRE_DEVICE bool is_power(int n) { return (n & (n - 1)) == 0; }

GYRE_DEVICE float4 times(float4 x, float4 y) {
  return make_float4(x.x * y.x, x.y * y.y, x.z * y.z, x.w * y.w);
}
GYRE_DEVICE float4 times(float4 x, float y) { return make_float4(x.x * y, x.y * y, x.z * y, x.w * y); }
GYRE_DEVICE float4 plus(float4 x, float4 y) {
  return make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
}
GYRE_DEVICE float sum_of(float4 x) { return (x.x + x.y) + (x.z + x.w); }

static __device__ __noinline__ float4 unary4(int function, float4 x) {
  return make_float4(unary(function, x.x), unary(function, x.y), unary(function, x.z),
                     unary(function, x.w));
}
GYRE_DEVICE float quick_silu(float x) { return x * quick_sigmoid(x); }
// The function of a gate: the usual one in place.
GYRE_DEVICE float4 gate4(int function, float4 x) {
  if (function < 0) return x;
  if (function != SILU) return unary4(function, x);
  return make_float4(quick_silu(x.x), quick_silu(x.y), quick_silu(x.z), quick_silu(x.w));
}

// How an operand is made; `plan` chooses. Code that a phase walks through once is paid by its length.
enum { ONE_BY_ONE, NORM_OF_ALL, NORM_OF_GROUPS, COPIED, JOINED };
#define STEP (4 * GYRE_TOKEN_THREADS)
#define FOURS 4  // most fours of a thread

// Which way an operand may go. All operands of a shift, which the first makes, are looked at.
GYRE_DEVICE int path_of(const gyre_token_phase &p, int which) {
  const gyre_token_operand &o = p.operand[which];
  if (o.kind == GYRE_TOKEN_ATTENTION) return JOINED;
  bool wide = o.size % 4 == 0 && is_wide(o.x) && is_wide(o.z) && is_wide(o.v) && is_wide(o.last) &&
              is_wide(o.keep) && is_wide_fours(o.weight) && is_wide_fours(o.bias);
  if (o.kind == GYRE_TOKEN_COPY) return wide && !present(o.keep) ? COPIED : ONE_BY_ONE;
  bool shifts = present(p.operand[0].mix);
  for (int i = 0; i < p.operands && shifts; i++) wide = wide && is_wide_fours(p.operand[i].mix);
  if (!wide || (o.group == o.size && o.size > FOURS * STEP)) return ONE_BY_ONE;
  if (o.group == o.size) return o.period == o.size && !present(o.v) ? NORM_OF_ALL : ONE_BY_ONE;
  return o.group <= 128 && o.group >= 4 && is_power(o.group) && !shifts && !present(o.keep) &&
                 (o.period == o.size || (is_power(o.period) && o.period >= 4))
             ? NORM_OF_GROUPS
             : ONE_BY_ONE;
}

// A norm over all, N fours a thread; with token shift, operand i is y + (last - y) * mix of operand i,
// `stride` after the one before.
template <int N>
GYRE_DEVICE void norm_all(
    const gyre_token_operand &o, long b, float *to, float *shared, int operands, int stride) {
  float4 x[N], z[N];
  RawFour weight[N], bias[N];
  int size = o.size, gate = o.gate, at = threadIdx.x * 4;
  bool weighed = present(o.weight), biased = present(o.bias);
  const float *from = o.x.data + b * o.x.stride, *gates = o.z.data + b * o.z.stride;
#pragma unroll
  for (int j = 0; j < N; j++) {
    int e = at + j * STEP;
    x[j] = make_float4(0.f, 0.f, 0.f, 0.f);
    if (e >= size) continue;
    x[j] = fresh4(from + e);
    if (gate) z[j] = fresh4(gates + e);
    if (weighed) weight[j].read(o.weight, e);
    if (biased) bias[j].read(o.bias, e);
  }
  if (gate) {
#pragma unroll
    for (int j = 0; j < N; j++) {
      if (at + j * STEP >= size) continue;
      z[j] = gate4(o.function, z[j]);
      if (gate == 2) x[j] = times(x[j], z[j]);
    }
  }
  float inverse = 1.f / size;
  if (o.centers) {
    float sum = 0.f;
#pragma unroll
    for (int j = 0; j < N; j++) sum += sum_of(x[j]);
    float mean = -team_sum(sum, shared + WARPS) * inverse;
#pragma unroll
    for (int j = 0; j < N; j++)
      if (at + j * STEP < size) x[j] = plus(x[j], make_float4(mean, mean, mean, mean));
  }
  float sum = 0.f;
#pragma unroll
  for (int j = 0; j < N; j++) sum += sum_of(times(x[j], x[j]));
  float scale = rsqrtf(team_sum(sum, shared) * inverse + o.epsilon);
  bool kept = present(o.keep) && blockIdx.x == 0, shifts = present(o.mix);
#pragma unroll
  for (int j = 0; j < N; j++) {
    int e = at + j * STEP;
    if (e >= size) continue;
    float4 y = times(x[j], scale);
    if (weighed) y = times(y, weight[j].number(o.weight.dtype));
    if (biased) y = plus(y, bias[j].number(o.bias.dtype));
    if (gate == 1) y = times(y, z[j]);
    if (kept) *(float4 *)(o.keep.data + b * o.keep.stride + e) = y;
    if (!shifts) {
      *(float4 *)(to + e) = y;
      continue;
    }
    RawFour mix[GYRE_TOKEN_OPERANDS];
    float4 last = fresh4(o.last.data + b * o.last.stride + e);
#pragma unroll
    for (int i = 0; i < GYRE_TOKEN_OPERANDS; i++)
      if (i < operands) mix[i].read((&o + i)->mix, e);
    last = plus(last, times(y, -1.f));
#pragma unroll
    for (int i = 0; i < GYRE_TOKEN_OPERANDS; i++)
      if (i < operands)
        *(float4 *)(to + (long)i * stride + e) =
            plus(y, times(last, mix[i].number((&o + i)->mix.dtype)));
  }
}
// Norms over groups within a warp, N fours of a thread at a time.
template <int N>
GYRE_DEVICE void norm_groups_of_warps(const gyre_token_operand &o, long b, float *to) {
  int size = o.size, gate = o.gate, lanes = o.group / 4, shift = 31 - __clz(o.group);
  int mask = o.period == size ? -1 : o.period - 1;
  bool weighed = present(o.weight), biased = present(o.bias), added = present(o.v);
  float inverse = 1.f / o.group;
  for (int first = 0; first < size; first += N * STEP) {
    float4 x[N], z[N], v[N];
    float score[N];
    RawFour weight[N], bias[N];
#pragma unroll
    for (int j = 0; j < N; j++) {
      int e = first + threadIdx.x * 4 + j * STEP;
      x[j] = make_float4(0.f, 0.f, 0.f, 0.f);
      if (e >= size) continue;
      x[j] = fresh4(o.x.data + b * o.x.stride + e);
      if (gate) z[j] = fresh4(o.z.data + b * o.z.stride + e);
      if (added) {
        v[j] = fresh4(o.v.data + b * o.v.stride + e);
        score[j] = fresh(o.score, b, e >> shift);
      }
      if (weighed) weight[j].read(o.weight, e & mask);
      if (biased) bias[j].read(o.bias, e & mask);
    }
#pragma unroll
    for (int j = 0; j < N; j++) {
      int e = first + threadIdx.x * 4 + j * STEP;
      if (gate && e < size) {
        z[j] = gate4(o.function, z[j]);
        if (gate == 2) x[j] = times(x[j], z[j]);
      }
      if (o.centers) {
        float sum = sum_of(x[j]);
        for (int n = lanes >> 1; n; n >>= 1) sum += __shfl_xor_sync(~0u, sum, n);
        sum *= -inverse;
        if (e < size) x[j] = plus(x[j], make_float4(sum, sum, sum, sum));
      }
      float sum = sum_of(times(x[j], x[j]));
      for (int n = lanes >> 1; n; n >>= 1) sum += __shfl_xor_sync(~0u, sum, n);
      if (e >= size) continue;
      float4 y = times(x[j], rsqrtf(sum * inverse + o.epsilon));
      if (weighed) y = times(y, weight[j].number(o.weight.dtype));
      if (biased) y = plus(y, bias[j].number(o.bias.dtype));
      if (added) y = plus(y, times(v[j], score[j]));
      if (gate == 1) y = times(y, z[j]);
      *(float4 *)(to + e) = y;
    }
  }
}
// A vector as it is, or times a gate.
GYRE_DEVICE void copy_fours(const gyre_token_operand &o, long b, float *to) {
  const float *from = o.x.data + b * o.x.stride, *gates = o.z.data + b * o.z.stride;
  int size = o.size, gate = o.gate;
  for (int first = threadIdx.x * 4; first < size; first += FOURS * STEP) {
    float4 x[FOURS], z[FOURS];
#pragma unroll
    for (int j = 0; j < FOURS; j++) {
      int e = first + j * STEP;
      if (e < size) x[j] = fresh4(from + e);
      if (e < size && gate) z[j] = fresh4(gates + e);
    }
#pragma unroll
    for (int j = 0; j < FOURS; j++) {
      int e = first + j * STEP;
      if (e < size) *(float4 *)(to + e) = gate ? times(x[j], gate4(o.function, z[j])) : x[j];
    }
  }
}
// A warp a group.
static __device__ __noinline__ void norm_groups(const gyre_token_operand &o, long b, float *to) {
  int lane = threadIdx.x & 31;
  for (int first = (threadIdx.x >> 5) * o.group; first < o.size; first += WARPS * o.group) {
    float sum = 0.f, square = 0.f;
    if (o.centers)
      for (int i = lane; i < o.group; i += 32) sum += norm_input(o, b, first + i);
    float mean = warp_sum(sum) / o.group;
    for (int i = lane; i < o.group; i += 32) {
      float x = norm_input(o, b, first + i) - mean;
      square += x * x;
    }
    float scale = 1.f / sqrtf(warp_sum(square) / o.group + o.epsilon);
    for (int i = lane; i < o.group; i += 32) {
      float x = (norm_input(o, b, first + i) - mean) * scale;
      to[first + i] = After(o, b, first + i)(x);
    }
  }
}

// Splits of an attention by their largest scores.
GYRE_DEVICE void join_attention(const gyre_token_operand &o, long b, float *to) {
  int heads = o.size / o.value_size;
  for (int e = threadIdx.x; e < o.size; e += GYRE_TOKEN_THREADS) {
    int h = e / o.value_size;
    float largest = -INFINITY, sum = 0.f, y = 0.f;
    for (int s = 0; s < o.splits; s++)
      largest = fmaxf(largest, fresh(o.score, b, (s * heads + h) * 2));
    for (int s = 0; s < o.splits; s++) {
      float m = fresh(o.score, b, (s * heads + h) * 2);
      if (m == -INFINITY) continue;
      float factor = expf(m - largest);
      sum += factor * fresh(o.score, b, (s * heads + h) * 2 + 1);
      y += factor * fresh(o.x, b, (long)s * o.size + e);
    }
    y /= sum;
    if (o.gate) y *= unary(o.function, fresh(o.z, b, e));
    to[e] = y;
  }
}

static __device__ __noinline__ void make_one_by_one(
    const gyre_token_phase &p, const gyre_token_operand &o, long b, float *to) {
  if (o.kind == GYRE_TOKEN_NORM)
    norm_groups(o, b, to);
  else
    for (int e = threadIdx.x; e < o.size; e += GYRE_TOKEN_THREADS) {
      float x = fresh(o.x, b, e);
      to[e] = o.gate ? x * unary(o.function, fresh(o.z, b, e)) : x;
    }
  block_barrier();
  if (present(o.keep) && blockIdx.x == 0)
    for (int e = threadIdx.x; e < o.size; e += GYRE_TOKEN_THREADS)
      o.keep.data[b * o.keep.stride + e] = to[e];
  if (o.kind != GYRE_TOKEN_NORM || !present(o.mix)) return;
  // Token shift: every operand is a mix of the first and the last token's.
  for (int e = threadIdx.x; e < o.size; e += GYRE_TOKEN_THREADS) {
    float x = to[e], step = fresh(o.last, b, e) - x;
    for (int i = 0; i < p.operands; i++)
      to[(long)i * M * padded(o.size) + e] = x + step * load(p.operand[i].mix, e);
  }
}

// All operands of a phase, one behind the other, M rows each. Ends with a barrier.
GYRE_DEVICE void make_operands(
    const gyre_token_phase &p, int batch, float *operands, float *shared) {
  for (int i = 0; i < p.operands; i++) {
    const gyre_token_operand &o = p.operand[i];
    if (o.kind == GYRE_TOKEN_SHIFT) continue;
#pragma unroll 1
    for (int b = 0; b < batch; b++) {
      int extent = padded(o.size), stride = M * extent;
      float *to = operands + o.offset + b * extent;
      switch (o.path) {
        case NORM_OF_ALL:
          if (o.size <= 2 * STEP) norm_all<2>(o, b, to, shared, p.operands, stride);
          else norm_all<FOURS>(o, b, to, shared, p.operands, stride);
          break;
        case NORM_OF_GROUPS: norm_groups_of_warps<2>(o, b, to); break;
        case COPIED: copy_fours(o, b, to); break;
        case JOINED: join_attention(o, b, to); break;
        default: make_one_by_one(p, o, b, to);
      }
      if (M > 1) block_barrier();  // the sums' place is free
    }
  }
  block_barrier();
}

// What the block finds out about a phase before it begins; by a warp.
GYRE_DEVICE void plan(gyre_token_phase &p, int lane) {
  if (p.kind != GYRE_TOKEN_PRODUCT_PHASE) return;
  if (lane < p.operands) {
    int offset = 0;
    for (int i = 0; i < lane; i++) offset += M * padded(p.operand[i].size);
    p.operand[lane].offset = offset;
    p.operand[lane].path = path_of(p, lane);
  }
  if (lane < p.products) {
    int first, last, before = 0;
    share(p.product[p.products - 1].first + p.product[p.products - 1].rows, first, last);
    for (int i = 0; i <= lane; i++) {
      gyre_token_product &q = p.product[i];
      int from = max(first - q.first, 0), own = max(min(last - q.first, q.rows) - from, 0);
      if (i < lane) before += q.paired ? 2 * own : own;
      else q.from = from, q.own = own, q.before = before;
    }
  }
}

// Work beside the phase's own, over the whole grid; by a warp a block.
GYRE_DEVICE void make_moves(const gyre_token_phase &p, int batch, int lane) {
  for (int n = 0; n < p.moves; n++) {
    const gyre_token_move &m = p.move[n];
    for (int i = blockIdx.x * 32 + lane; i < batch * m.count; i += gridDim.x * 32) {
      int b = i / m.count, c = i - b * m.count;
      float *to = m.to.data + b * m.to.stride + c;
      float x[GYRE_TOKEN_TAPS], last = fresh(m.from, b, c);
#pragma unroll
      for (int j = 1; j < GYRE_TOKEN_TAPS; j++)
        if (j < m.taps) x[j] = fresh(to + (long)j * m.count);
#pragma unroll
      for (int j = 1; j < GYRE_TOKEN_TAPS; j++)
        if (j < m.taps) to[(long)(j - 1) * m.count] = x[j];
      if (m.taps) to += (long)(m.taps - 1) * m.count;
      *to = last;
    }
  }
}
