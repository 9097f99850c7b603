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
    int at = e % o.period;
    weight = load_or(o.weight, at, 1.f);
    bias = load_or(o.bias, at, 0.f);
    if (present(o.v)) bias += fresh(o.v, b, e) * fresh(o.score, b, e / o.group);
    factor = o.gate == 1 ? unary(o.function, fresh(o.z, b, e)) : 1.f;
  }
  GYRE_DEVICE float operator()(float x) const { return (x * weight + bias) * factor; }
};

#define HELD 16  // elements of a thread that stay in registers

// Sums over groups of whole warps' elements: the thread's j-th gets that of its group.
static __device__ __noinline__ void group_sums(int group, const float (&x)[HELD], float (&sum)[HELD], float *shared) {
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, blocks = group / 32;
#pragma unroll
  for (int j = 0; j < HELD; j++) {
    float s = warp_sum(x[j]);
    if (lane == 0) shared[j * WARPS + warp] = s;
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < HELD; j++) {
    int first = (j * WARPS + warp) / blocks * blocks;
    sum[j] = 0.f;
    for (int i = 0; i < blocks && first + i < HELD * WARPS; i++) sum[j] += shared[first + i];
  }
  __syncthreads();
}
GYRE_DEVICE void norm_sums(
    const gyre_token_operand &o, const float (&x)[HELD], float (&sum)[HELD], float *shared) {
  if (o.group != o.size) return group_sums(o.group, x, sum, shared);
  float all = 0.f;
#pragma unroll
  for (int j = 0; j < HELD; j++) all += x[j];
  all = block_sum(all, shared);
#pragma unroll
  for (int j = 0; j < HELD; j++) sum[j] = all;
}

// All threads of the block; every load is under way before the first sum.
static __device__ __noinline__ void norm_held(const gyre_token_operand &o, long b, float *to, float *shared) {
  float x[HELD], sum[HELD], weight[HELD], bias[HELD], factor[HELD];
#pragma unroll
  for (int j = 0; j < HELD; j++) {
    int e = threadIdx.x + j * GYRE_TOKEN_THREADS;
    x[j] = 0.f;
    if (e >= o.size) continue;
    x[j] = norm_input(o, b, e);
    After after(o, b, e);
    weight[j] = after.weight, bias[j] = after.bias, factor[j] = after.factor;
  }
  if (o.centers) {
    norm_sums(o, x, sum, shared);
#pragma unroll
    for (int j = 0; j < HELD; j++)
      if (threadIdx.x + j * GYRE_TOKEN_THREADS < o.size) x[j] -= sum[j] / o.group;
  }
  float square[HELD];
#pragma unroll
  for (int j = 0; j < HELD; j++) square[j] = x[j] * x[j];
  norm_sums(o, square, sum, shared);
#pragma unroll
  for (int j = 0; j < HELD; j++) {
    int e = threadIdx.x + j * GYRE_TOKEN_THREADS;
    if (e >= o.size) continue;
    float y = x[j] / sqrtf(sum[j] / o.group + o.epsilon);
    to[placed(e)] = (y * weight[j] + bias[j]) * factor[j];
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
      to[placed(first + i)] = After(o, b, first + i)(x);
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
    to[placed(e)] = y;
  }
}

// All operands of a phase, one behind the other, M rows each. Ends with a barrier.
GYRE_DEVICE void make_operands(
    const gyre_token_phase &p, int batch, float *operands, float *shared) {
  float *to = operands;
  for (int i = 0; i < p.operands; i++) {
    const gyre_token_operand &o = p.operand[i];
    int extent = padded(o.size);
#pragma unroll 1
    for (int b = 0; b < M; b++, to += extent) {
      for (int e = (b < batch ? o.size : 0) + threadIdx.x; e < extent; e += GYRE_TOKEN_THREADS)
        to[placed(e)] = 0.f;
      if (b >= batch) continue;
      if (o.kind == GYRE_TOKEN_NORM) {
        bool fits = o.size <= HELD * GYRE_TOKEN_THREADS;
        if (fits && (o.group == o.size || o.group % 32 == 0)) norm_held(o, b, to, shared);
        else norm_groups(o, b, to);
      } else if (o.kind == GYRE_TOKEN_ATTENTION) {
        join_attention(o, b, to);
      } else if (o.kind == GYRE_TOKEN_COPY) {
        for (int e = threadIdx.x; e < o.size; e += GYRE_TOKEN_THREADS) {
          float x = fresh(o.x, b, e);
          to[placed(e)] = o.gate ? x * unary(o.function, fresh(o.z, b, e)) : x;
        }
      }
      if (present(o.keep) && blockIdx.x == 0) {
        __syncthreads();
        for (int e = threadIdx.x; e < o.size; e += GYRE_TOKEN_THREADS)
          o.keep.data[b * o.keep.stride + e] = to[placed(e)];
      }
    }
  }
  __syncthreads();
  if (p.operand[0].kind != GYRE_TOKEN_NORM || !present(p.operand[0].mix)) return;
  // Token shift: every operand is a mix of the first and the last token's.
  int size = p.operand[0].size, extent = padded(size);
  for (int b = 0; b < batch; b++)
    for (int e = threadIdx.x; e < size; e += GYRE_TOKEN_THREADS) {
      float *at = operands + b * extent + placed(e);
      float x = *at, step = fresh(p.operand[0].last, b, e) - x;
      for (int i = 0; i < p.operands; i++)
        at[(long)i * M * extent] = x + step * load(p.operand[i].mix, e);
    }
  __syncthreads();
}

// Work beside the phase's own, over the whole grid.
GYRE_DEVICE void make_moves(const gyre_token_phase &p, int batch) {
  for (int n = 0; n < p.moves; n++) {
    const gyre_token_move &m = p.move[n];
    for (int i = blockIdx.x * GYRE_TOKEN_THREADS + threadIdx.x; i < batch * m.count;
         i += gridDim.x * GYRE_TOKEN_THREADS) {
      int b = i / m.count, c = i - b * m.count;
      float *to = m.to.data + b * m.to.stride + c;
      for (int j = 0; j + 1 < m.taps; j++) to[(long)j * m.count] = to[(long)(j + 1) * m.count];
      if (m.taps) to += (long)(m.taps - 1) * m.count;
      *to = fresh(m.from, b, c);
    }
  }
}
