// Variants: LANES=8,16,32,64
// One token of attention against caches with room, bound by reading them once. A block has one head of one
// sequence; LANES lanes of four channels take a cached token (64: a warp with eight channels a lane), a warp
// several beside each other and UNDER_WAY of them one after the other, whose loads are on their way together.
#include "gyre_cuda_engine_args.h"
#include "four.cuh"

#define EACH (LANES > 32 ? 2 : 1)
#define GROUP (LANES > 32 ? 32 : LANES)
#define BESIDE (32 / GROUP)
#define UNDER_WAY (EACH == 2 ? 2 : 4)
#define WARPS 8
#define FLOOR -1e30f

struct Part {
  float4 v[EACH];
};

// A running softmax: the largest score, the sum of weights, weighted values.
struct Sum {
  float top, weight;
  Part y;
};
GYRE_DEVICE float4 scaled(const float4 &x, float s) {
  return make_float4(x.x * s, x.y * s, x.z * s, x.w * s);
}
GYRE_DEVICE void add_times(float4 &y, float s, const float4 &x) {
  y.x += s * x.x, y.y += s * x.y, y.z += s * x.z, y.w += s * x.w;
}
GYRE_DEVICE float power(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
GYRE_DEVICE float over_lanes(float x) {
#pragma unroll
  for (int o = GROUP / 2; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
  return x;
}
GYRE_DEVICE void join(Sum &a, float top, float weight, const Part &y) {
  const float both = fmaxf(a.top, top), own = power(a.top - both), other = power(top - both);
  a.top = both, a.weight = a.weight * own + weight * other;
#pragma unroll
  for (int e = 0; e < EACH; e++) {
    a.y.v[e] = scaled(a.y.v[e], own);
    add_times(a.y.v[e], other, y.v[e]);
  }
}

// Channel i of a head at its position.
GYRE_DEVICE float turned(const gyre_attention_step_args &a, const gyre_array &x, long at, int i, int position) {
  const float own = load(x, at + i);
  if (i >= a.rotated) return own;
  const int half = a.rotated / 2, pair = a.interleaved ? i / 2 : i % half;
  const bool is_first = a.interleaved ? i % 2 == 0 : i < half;
  const int other = a.interleaved ? i ^ 1 : is_first ? i + half : i - half;
  double sine, cosine;
  sincos((double)position * pow(a.base, -2. * pair / a.rotated), &sine, &cosine);
  const float partner = load(x, at + other);
  return is_first ? own * (float)cosine - partner * (float)sine : partner * (float)sine + own * (float)cosine;
}

GYRE_KERNEL __launch_bounds__(32 * WARPS, EACH == 2 ? 2 : 3)
attention_step(const __grid_constant__ gyre_attention_step_args a) {
  __shared__ float query[256], key[256];
  __shared__ float merged[WARPS][256], tops[WARPS], weights[WARPS];
  const int D = (int)a.size, position = (int)load(a.position, 0);
  const long b = blockIdx.x / a.heads, h = blockIdx.x % a.heads, group = a.heads / a.key_heads;
  const long own = (b * a.key_heads + h / group) * D, step = a.key_heads * D;
  const long cache = b * a.capacity * step + h / group * D;
  float *keys = (float *)a.keys.data + cache, *values = (float *)a.values.data + cache;
  const int i = threadIdx.x;
  if (i < 256) {
    const bool is_inside = i < D;
    // Scores in powers of two.
    query[i] = is_inside ? turned(a, a.q, (b * a.heads + h) * D, i, position) * a.scale * 1.4426950408889634f
                         : 0.f;
    key[i] = is_inside ? turned(a, a.k, own, i, position) : 0.f;
    if (is_inside && h % group == 0 && position < a.capacity) {
      keys[position * step + i] = key[i];
      values[position * step + i] = load(a.v, own + i);
    }
  }
  __syncthreads();

  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, sub = lane / GROUP, first = lane % GROUP * 4;
  Part q;
  bool is_inside[EACH];
#pragma unroll
  for (int e = 0; e < EACH; e++) {
    q.v[e] = *(const float4 *)&query[first + e * 128];
    is_inside[e] = first + e * 128 < D;
  }
  const float4 none = make_float4(0.f, 0.f, 0.f, 0.f);
  Sum sum = {FLOOR, 0.f, {}};
#pragma unroll
  for (int e = 0; e < EACH; e++) sum.y.v[e] = none;
  auto dot = [&](const Part &k) {
    float s = 0.f;
#pragma unroll
    for (int e = 0; e < EACH; e++)
      s += q.v[e].x * k.v[e].x + q.v[e].y * k.v[e].y + q.v[e].z * k.v[e].z + q.v[e].w * k.v[e].w;
    return over_lanes(s);
  };
  // All lanes of a warp take as many turns.
  for (int t0 = warp * BESIDE * UNDER_WAY; t0 < position; t0 += WARPS * BESIDE * UNDER_WAY) {
    Part k[UNDER_WAY], v[UNDER_WAY];
    float score[UNDER_WAY], top = sum.top;
#pragma unroll
    for (int u = 0; u < UNDER_WAY; u++) {
      const int t = t0 + u * BESIDE + sub;
#pragma unroll
      for (int e = 0; e < EACH; e++) {
        const bool reads = t < position && is_inside[e];
        const long at = t * step + first + e * 128;
        k[u].v[e] = reads ? *(const float4 *)(keys + at) : none;
        v[u].v[e] = reads ? *(const float4 *)(values + at) : none;
      }
    }
#pragma unroll
    for (int u = 0; u < UNDER_WAY; u++) {
      score[u] = dot(k[u]);
      if (t0 + u * BESIDE + sub >= position) score[u] = FLOOR;
      top = fmaxf(top, score[u]);
    }
    const float keep = power(sum.top - top);
    sum.top = top, sum.weight *= keep;
#pragma unroll
    for (int e = 0; e < EACH; e++) sum.y.v[e] = scaled(sum.y.v[e], keep);
#pragma unroll
    for (int u = 0; u < UNDER_WAY; u++) {
      const float p = t0 + u * BESIDE + sub < position ? power(score[u] - top) : 0.f;
      sum.weight += p;
#pragma unroll
      for (int e = 0; e < EACH; e++) add_times(sum.y.v[e], p, v[u].v[e]);
    }
  }
  // The token itself.
  Part k, v;
#pragma unroll
  for (int e = 0; e < EACH; e++) {
    k.v[e] = *(const float4 *)&key[first + e * 128];
    v.v[e] = none;
    if (is_inside[e]) {
      const Four four = load4<false>(a.v, own + first + e * 128);
      v.v[e] = make_float4(four.c[0], four.c[1], four.c[2], four.c[3]);
    }
  }
  const float score = dot(k);
  if (warp == 0 && sub == 0) join(sum, score, 1.f, v);
#pragma unroll
  for (int o = GROUP; o < 32; o <<= 1) {
    Part other;
    const float top = __shfl_xor_sync(~0u, sum.top, o), weight = __shfl_xor_sync(~0u, sum.weight, o);
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      other.v[e].x = __shfl_xor_sync(~0u, sum.y.v[e].x, o);
      other.v[e].y = __shfl_xor_sync(~0u, sum.y.v[e].y, o);
      other.v[e].z = __shfl_xor_sync(~0u, sum.y.v[e].z, o);
      other.v[e].w = __shfl_xor_sync(~0u, sum.y.v[e].w, o);
    }
    join(sum, top, weight, other);
  }
  if (sub == 0) {
#pragma unroll
    for (int e = 0; e < EACH; e++) *(float4 *)&merged[warp][first + e * 128] = sum.y.v[e];
    if (lane == 0) tops[warp] = sum.top, weights[warp] = sum.weight;
  }
  __syncthreads();
  if (i >= D) return;
  float top = FLOOR, weight = 0.f, y = 0.f;
#pragma unroll
  for (int w = 0; w < WARPS; w++) top = fmaxf(top, tops[w]);
#pragma unroll
  for (int w = 0; w < WARPS; w++) {
    const float part = power(tops[w] - top);
    weight += part * weights[w];
    y += part * merged[w][i];
  }
  store(a.y, (b * a.heads + h) * D + i, y / weight);
}
