// One token of softmax attention over cached keys and values. A block takes a part of the keys of one
// query head; eight lanes share a key. The block that has the newest key makes it and stores it.
#pragma once
#include "token_operand.cuh"

#define LANES 8
#define PARTS (GYRE_TOKEN_KEYS / (8 * LANES))  // runs of 8 channels of a lane
#define TEAMS (GYRE_TOKEN_THREADS / LANES)

struct AttentionWork {
  float q[GYRE_TOKEN_KEYS], k[GYRE_TOKEN_KEYS], v[GYRE_TOKEN_KEYS];
  float scalar[2];
  float largest[WARPS], sum[WARPS];
  float y[WARPS][GYRE_TOKEN_KEYS];
};

// One head of q or k, normalised and turned to its position.
static __device__ __noinline__ void place_head(
    const gyre_token_attention &a, long b, int offset, const gyre_array &norm, double position,
    float *to, float *scale) {
  for (int i = threadIdx.x; i < a.size; i += GYRE_TOKEN_THREADS) to[i] = fresh(a.x, b, offset + i);
  block_barrier();
  if (present(norm)) {
    if (threadIdx.x < 32) {
      float s = 0.f;
      for (int i = threadIdx.x; i < a.size; i += 32) s += to[i] * to[i];
      s = warp_sum(s);
      if (threadIdx.x == 0) *scale = 1.f / sqrtf(s / a.size + a.epsilon);
    }
    block_barrier();
    for (int i = threadIdx.x; i < a.size; i += GYRE_TOKEN_THREADS) to[i] *= *scale * load(norm, i);
    block_barrier();
  }
  int i = threadIdx.x, pairs = a.rotated / 2;
  if (i < pairs) {
    double angle = position * exp(-2. * i / a.rotated * a.log_base), s, c;
    sincos(angle, &s, &c);
    int first = a.interleaved ? 2 * i : i, second = a.interleaved ? 2 * i + 1 : i + pairs;
    float x = to[first], y = to[second], cosine = (float)c, sine = (float)s;
    to[first] = x * cosine - y * sine;
    to[second] = x * sine + y * cosine;
  }
  block_barrier();
}

GYRE_DEVICE void load_cached(const char *p, long i, float (&x)[8]) {
  gyre_array a;
  a.data = (void *)p;
  a.dtype = WEIGHTS_ARE_FLOAT ? GYRE_F32 : GYRE_BF16;
  load8(a, i, x);
}
GYRE_DEVICE void store_cached(char *p, long i, float x) {
  if (WEIGHTS_ARE_FLOAT) ((float *)p)[i] = x;
  else ((unsigned short *)p)[i] = float_to_bf16(x);
}

static __device__ __noinline__ void attention_step(
    const gyre_token_attention &a, int batch, long position, AttentionWork &w) {
  int lane = threadIdx.x & (LANES - 1), team = threadIdx.x / LANES;
  int warp = threadIdx.x >> 5;
  long seen = position + 1;
  if (a.window > 0 && seen > a.window) seen = a.window;
  long slot = a.window > 0 ? position % a.capacity : position;
  for (int unit = blockIdx.x; unit < batch * a.heads * a.splits; unit += gridDim.x) {
    int split = unit % a.splits, h = unit / a.splits % a.heads;
    long b = unit / a.splits / a.heads;
    int per = a.heads / a.key_heads, key_head = h / per;
    place_head(a, b, a.q + h * a.size, a.query_norm, (double)position, w.q, w.scalar);
    place_head(a, b, a.k + key_head * a.size, a.key_norm, (double)position, w.k, w.scalar + 1);
    for (int i = threadIdx.x; i < a.size; i += GYRE_TOKEN_THREADS)
      w.v[i] = fresh(a.x, b, a.v + key_head * a.size + i);
    block_barrier();
    if (split == a.splits - 1 && h % per == 0)
      for (int i = threadIdx.x; i < a.size; i += GYRE_TOKEN_THREADS) {
        long at = ((b * a.capacity + slot) * a.key_heads + key_head) * a.size + i;
        store_cached(a.keys, at, w.k[i]);
        store_cached(a.values, at, w.v[i]);
      }
    // Old keys: all but the newest, which comes from shared memory.
    long old = seen - 1, from = old * split / a.splits, to = old * (split + 1) / a.splits;
    float q[PARTS][8], y[PARTS][8];
#pragma unroll
    for (int p = 0; p < PARTS; p++)
#pragma unroll
      for (int i = 0; i < 8; i++) {
        int e = p * 8 * LANES + lane * 8 + i;
        q[p][i] = e < a.size ? w.q[e] * a.scale : 0.f;
        y[p][i] = 0.f;
      }
    float largest = -INFINITY, sum = 0.f;
    // Teams of a warp go on together: the shuffles need all of them.
    for (long first = from; first < to; first += TEAMS) {
      long n = first + team;
      bool exists = n < to;
      // In a ring the newest takes the place of the oldest that is gone.
      long place = a.window > 0 ? (position - 1 - n) % a.capacity : n;
      long row = ((b * a.capacity + place) * a.key_heads + key_head) * a.size;
      float score = 0.f, v[PARTS][8];
#pragma unroll
      for (int p = 0; p < PARTS; p++) {
        int e = p * 8 * LANES + lane * 8;
        if (!exists || e >= a.size) continue;
        float k[8];
        load_cached(a.keys, row + e, k);
        load_cached(a.values, row + e, v[p]);
#pragma unroll
        for (int i = 0; i < 8; i++) score += q[p][i] * k[i];
      }
#pragma unroll
      for (int o = LANES / 2; o; o >>= 1) score += __shfl_xor_sync(~0u, score, o);
      if (!exists) continue;
      float top = fmaxf(largest, score), keep = expf(largest - top), weight = expf(score - top);
      sum = sum * keep + weight;
      largest = top;
#pragma unroll
      for (int p = 0; p < PARTS; p++) {
        if (p * 8 * LANES + lane * 8 >= a.size) continue;
#pragma unroll
        for (int i = 0; i < 8; i++) y[p][i] = y[p][i] * keep + weight * v[p][i];
      }
    }
    if (split == a.splits - 1 && warp == 0) {
      float score = 0.f;
#pragma unroll
      for (int p = 0; p < PARTS; p++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
          int e = p * 8 * LANES + lane * 8 + i;
          if (e < a.size) score += q[p][i] * w.k[e];
        }
#pragma unroll
      for (int o = LANES / 2; o; o >>= 1) score += __shfl_xor_sync(~0u, score, o);
      // The first team takes it.
      float top = team ? largest : fmaxf(largest, score);
      float keep = team ? 1.f : expf(largest - top), weight = team ? 0.f : expf(score - top);
      sum = sum * keep + weight;
      largest = top;
#pragma unroll
      for (int p = 0; p < PARTS; p++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
          int e = p * 8 * LANES + lane * 8 + i;
          if (e < a.size) y[p][i] = y[p][i] * keep + weight * w.v[e];
        }
    }
    __syncwarp();
    // The teams of a warp, then the warps.
#pragma unroll
    for (int o = LANES; o < 32; o <<= 1) {
      float other = __shfl_xor_sync(~0u, largest, o), top = fmaxf(largest, other);
      float keep = largest == -INFINITY ? 0.f : expf(largest - top);
      float theirs = other == -INFINITY ? 0.f : expf(other - top);
      sum = sum * keep + __shfl_xor_sync(~0u, sum, o) * theirs;
#pragma unroll
      for (int p = 0; p < PARTS; p++)
#pragma unroll
        for (int i = 0; i < 8; i++)
          y[p][i] = y[p][i] * keep + __shfl_xor_sync(~0u, y[p][i], o) * theirs;
      largest = top;
    }
    if ((threadIdx.x & 31) < LANES) {
      if (lane == 0) w.largest[warp] = largest, w.sum[warp] = sum;
#pragma unroll
      for (int p = 0; p < PARTS; p++)
#pragma unroll
        for (int i = 0; i < 8; i++) w.y[warp][p * 8 * LANES + lane * 8 + i] = y[p][i];
    }
    block_barrier();
    float top = -INFINITY, total = 0.f;
    for (int i = 0; i < WARPS; i++) top = fmaxf(top, w.largest[i]);
    for (int i = threadIdx.x; i < a.size; i += GYRE_TOKEN_THREADS) {
      float x = 0.f;
      for (int j = 0; j < WARPS; j++)
        if (w.largest[j] != -INFINITY) x += expf(w.largest[j] - top) * w.y[j][i];
      a.y.data[b * a.y.stride + (long)(split * a.heads + h) * a.size + i] = x;
    }
    if (threadIdx.x == 0) {
      for (int j = 0; j < WARPS; j++)
        if (w.largest[j] != -INFINITY) total += expf(w.largest[j] - top) * w.sum[j];
      float *out = a.sums.data + b * a.sums.stride + (split * a.heads + h) * 2;
      out[0] = top;
      out[1] = total;
    }
    block_barrier();
  }
}
