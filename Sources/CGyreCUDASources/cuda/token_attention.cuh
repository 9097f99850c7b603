// One token of softmax attention over cached keys and values. A block takes a part of the keys of one
// query head; eight lanes share a key. The block that has the newest key makes it and stores it.
#pragma once
#include "token_operand.cuh"

#define LANES 8
#define CHUNKS (GYRE_TOKEN_KEYS / (8 * LANES))  // runs of 8 channels of a lane
#define KEY_TEAMS (GYRE_TOKEN_THREADS / LANES)

struct AttentionWork {
  float q[GYRE_TOKEN_KEYS], k[GYRE_TOKEN_KEYS], v[GYRE_TOKEN_KEYS];
  float largest[WARPS], sum[WARPS];
  float y[WARPS][GYRE_TOKEN_KEYS];
};

// Cosines and sines of the position, kept from layer to layer.
GYRE_DEVICE void find_turn(const gyre_token_attention &a, double position, gyre_token_shared &s) {
  if (s.rotated == a.rotated && s.log_base == a.log_base) return;
  block_barrier();
  int i = threadIdx.x;
  if (i < a.rotated / 2) {
    double sine, cosine;
    sincos(position * exp(-2. * i / a.rotated * a.log_base), &sine, &cosine);
    s.turn[0][i] = (float)cosine, s.turn[1][i] = (float)sine;
  }
  if (i == 0) s.rotated = a.rotated, s.log_base = a.log_base;
  block_barrier();
}
// One head of q or k, normalised and turned to its position; by a warp.
GYRE_DEVICE void place_head(
    const gyre_token_attention &a, long b, int offset, const float *norm, unsigned base,
    const gyre_token_shared &s, float *to) {
  int lane = threadIdx.x & 31;
  float square = 0.f;
  for (int i = lane; i < a.size; i += 32) {
    float x = take(a.x, b, offset + i, base);
    to[i] = x;
    square += x * x;
  }
  if (norm) {
    float scale = rsqrtf(warp_sum(square) / a.size + a.epsilon);
    for (int i = lane; i < a.size; i += 32) to[i] *= scale * norm[i];
  }
  __syncwarp();
  for (int i = lane; i < a.rotated / 2; i += 32) {
    int first = a.interleaved ? 2 * i : i, second = a.interleaved ? 2 * i + 1 : i + a.rotated / 2;
    float x = to[first], y = to[second], cosine = s.turn[0][i], sine = s.turn[1][i];
    to[first] = x * cosine - y * sine;
    to[second] = x * sine + y * cosine;
  }
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

static __device__ __noinline__ void attention_step(int batch, long position) {
  gyre_token_shared &s = TOKEN_SHARED;
  const gyre_token_attention &a = phase_now().attention;
  AttentionWork &w = *(AttentionWork *)operands_of_block();
  unsigned base = TOKEN_WORD(base), *count = s.counts + now();
  int lane = threadIdx.x & (LANES - 1), team = threadIdx.x / LANES;
  int warp = threadIdx.x >> 5;
  find_turn(a, (double)position, s);
  long seen = position + 1;
  if (a.window > 0 && seen > a.window) seen = a.window;
  long slot = a.window > 0 ? position % a.capacity : position;
  for (int unit = blockIdx.x; unit < batch * a.heads * a.splits; unit += gridDim.x) {
    int split = unit % a.splits, h = unit / a.splits % a.heads;
    long b = unit / a.splits / a.heads;
    int per = a.heads / a.key_heads, key_head = h / per;
    // Old keys: all but the newest, which comes from shared memory. They come nearer while the token's
    // numbers are waited for.
    long old = seen - 1, from = old * split / a.splits, to = old * (split + 1) / a.splits;
    int row_bytes = a.size * ELEMENT, lines = (row_bytes + 127) / 128;
    for (int i = threadIdx.x; i < (to - from) * lines; i += GYRE_TOKEN_THREADS) {
      long n = from + i / lines, place = a.window > 0 ? (position - 1 - n) % a.capacity : n;
      long at = ((b * a.capacity + place) * a.key_heads + key_head) * row_bytes + i % lines * 128;
      asm volatile("prefetch.global.L2 [%0];" ::"l"(a.keys + at));
      asm volatile("prefetch.global.L2 [%0];" ::"l"(a.values + at));
    }
    if (warp == 0) place_head(a, b, a.q + h * a.size, a.query_norm, base, s, w.q);
    if (warp == 1) place_head(a, b, a.k + key_head * a.size, a.key_norm, base, s, w.k);
    if (warp == 2)
      for (int i = threadIdx.x & 31; i < a.size; i += 32)
        w.v[i] = take(a.x, b, a.v + key_head * a.size + i, base);
    block_barrier();
    if (split == a.splits - 1 && h % per == 0)
      for (int i = threadIdx.x; i < a.size; i += GYRE_TOKEN_THREADS) {
        long at = ((b * a.capacity + slot) * a.key_heads + key_head) * a.size + i;
        store_cached(a.keys, at, w.k[i]);
        store_cached(a.values, at, w.v[i]);
      }
    float q[CHUNKS][8], y[CHUNKS][8];
#pragma unroll
    for (int p = 0; p < CHUNKS; p++)
#pragma unroll
      for (int i = 0; i < 8; i++) {
        int e = p * 8 * LANES + lane * 8 + i;
        q[p][i] = e < a.size ? w.q[e] * a.scale : 0.f;
        y[p][i] = 0.f;
      }
    float largest = -INFINITY, sum = 0.f;
    // Teams of a warp go on together: the shuffles need all of them.
    for (long first = from; first < to; first += KEY_TEAMS) {
      long n = first + team;
      bool exists = n < to;
      // In a ring the newest takes the place of the oldest that is gone.
      long place = a.window > 0 ? (position - 1 - n) % a.capacity : n;
      long row = ((b * a.capacity + place) * a.key_heads + key_head) * a.size;
      float score = 0.f, v[CHUNKS][8];
#pragma unroll
      for (int p = 0; p < CHUNKS; p++) {
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
      for (int p = 0; p < CHUNKS; p++) {
        if (p * 8 * LANES + lane * 8 >= a.size) continue;
#pragma unroll
        for (int i = 0; i < 8; i++) y[p][i] = y[p][i] * keep + weight * v[p][i];
      }
    }
    if (split == a.splits - 1 && warp == 0) {
      float score = 0.f;
#pragma unroll
      for (int p = 0; p < CHUNKS; p++)
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
      for (int p = 0; p < CHUNKS; p++)
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
      for (int p = 0; p < CHUNKS; p++)
#pragma unroll
        for (int i = 0; i < 8; i++)
          y[p][i] = y[p][i] * keep + __shfl_xor_sync(~0u, y[p][i], o) * theirs;
      largest = top;
    }
    if ((threadIdx.x & 31) < LANES) {
      if (lane == 0) w.largest[warp] = largest, w.sum[warp] = sum;
#pragma unroll
      for (int p = 0; p < CHUNKS; p++)
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
      give(a.y, b, (long)(split * a.heads + h) * a.size + i, base, x);
    }
    if (threadIdx.x == 0) {
      for (int j = 0; j < WARPS; j++)
        if (w.largest[j] != -INFINITY) total += expf(w.largest[j] - top) * w.sum[j];
      give(a.sums, b, (split * a.heads + h) * 2, base, top);
      give(a.sums, b, (split * a.heads + h) * 2 + 1, base, total);
      count_given(count, a.size);
    }
    block_barrier();
  }
}
