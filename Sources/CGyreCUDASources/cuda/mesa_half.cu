// MesaNet's memory with the roundings of flash-linear-attention's kernel: see HalfMesa. A block walks the
// chunks of a head; H and G lie where the results go, a warp solves for a token of the chunk at a time.
#include "gyre_cuda_engine_args.h"
#include "prelude.cuh"

enum { CHUNK = 64 };
extern __shared__ float memory[];

GYRE_DEVICE float half_of(float x) { return f16_to_float(float_to_f16(x)); }
GYRE_DEVICE float bfloat16_of(float x) { return bf16_to_float(float_to_bf16(x)); }

// What a warp needs of its token.
struct Token {
  const float *keys, *decays, *betas;  // of the chunk
  float *rounded, *scores;  // a warp's own
  int i, K, lane;
  float reach;

  // scores[n] = <p rounded, key n> strength, of the tokens up to its own.
  GYRE_DEVICE void score(const float *x, bool rounds) const {
    for (int j = lane; j < K; j += 32) rounded[j] = half_of(x[j]);
    __syncwarp();
    for (int n = lane; n <= i; n += 32) {
      float sum = 0.f;
      for (int j = 0; j < K; j++) sum += rounded[j] * keys[n * (K + 1) + j];
      sum *= expf(decays[i] - decays[n]) * betas[n];
      scores[n] = rounds ? half_of(sum) : sum;
    }
    __syncwarp();
  }
};

// 512 threads. Shared memory: gyre_mesa_half_shared.
GYRE_KERNEL mesa_half(const __grid_constant__ gyre_mesa_half_args a) {
  const int K = (int)a.keys, V = (int)a.values, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const long b = blockIdx.x / a.heads, head = blockIdx.x % a.heads;
  float *keys = memory, *decays = keys + CHUNK * (K + 1), *betas = decays + CHUNK;
  float *own = betas + CHUNK + warp * (5 * K + CHUNK);
  float *x = own, *r = own + K, *p = own + 2 * K, *image = own + 3 * K;
  float *H = a.H + blockIdx.x * a.keys * K, *G = a.G + blockIdx.x * a.keys * V;
  for (long e = threadIdx.x; e < (long)K * K; e += blockDim.x)
    H[e] = load_or(a.H0, blockIdx.x * (long)K * K + e, 0.f);
  for (long e = threadIdx.x; e < (long)K * V; e += blockDim.x)
    G[e] = load_or(a.G0, blockIdx.x * (long)K * V + e, 0.f);
  auto place = [&](long t) { return (b * a.tokens + t) * a.heads + head; };

  for (long first = 0; first < a.tokens; first += CHUNK) {
    const int count = a.tokens - first < CHUNK ? (int)(a.tokens - first) : CHUNK;
    __syncthreads();
    for (int e = threadIdx.x; e < count * K; e += blockDim.x)
      keys[e / K * (K + 1) + e % K] = load(a.k, place(first + e / K) * K + e % K);
    if (threadIdx.x < count) betas[threadIdx.x] = load(a.beta, place(first + threadIdx.x));
    if (threadIdx.x == 0) {
      float sum = 0.f;
      for (int n = 0; n < count; n++) decays[n] = sum += load(a.g, place(first + n));
    }
    __syncthreads();
    for (int i = warp; i < count; i += blockDim.x >> 5) {
      const long at = place(first + i);
      const Token token{keys, decays, betas, own + 4 * K, own + 5 * K, i, K, lane, expf(decays[i])};
      float mine = 0.f;
      for (int j = lane; j < K; j += 32) {
        x[j] = 0.f;
        r[j] = p[j] = load(a.q, at * K + j);
        mine += r[j] * r[j];
      }
      float size = warp_sum(mine);
      for (int step = 0; step < a.steps; step++) {
        token.score(p, true);
        mine = 0.f;
        for (int j = lane; j < K; j += 32) {
          float sum = load(a.ridge, head * K + j) * p[j];
          for (int m = 0; m < K; m++) sum += H[m * K + j] * (p[m] * token.reach);
          for (int n = 0; n <= i; n++) sum += keys[n * (K + 1) + j] * token.scores[n];
          image[j] = sum;
          mine += p[j] * sum;
        }
        const float alpha = size / (warp_sum(mine) + a.epsilon);
        mine = 0.f;
        __syncwarp();
        for (int j = lane; j < K; j += 32) {
          x[j] += alpha * p[j];
          r[j] -= alpha * image[j];
          mine += r[j] * r[j];
        }
        const float next = warp_sum(mine), ratio = next / (size + a.epsilon);
        for (int j = lane; j < K; j += 32) p[j] = r[j] + ratio * p[j];
        size = next;
      }
      __syncwarp();
      token.score(x, false);
      for (int j = lane; j < V; j += 32) {
        float sum = 0.f;
        for (int n = 0; n <= i; n++) sum += load(a.v, place(first + n) * V + j) * token.scores[n];
        for (int m = 0; m < K; m++)
          sum += bfloat16_of(G[(long)m * V + j]) * bfloat16_of(x[m] * token.reach);
        store(a.y, at * V + j, sum);
      }
      for (int j = lane; j < K; j += 32) store(a.x, at * K + j, half_of(x[j]));
      __syncwarp();
    }
    __syncthreads();
    const float last = decays[count - 1], kept = expf(last);
    auto written = [&](int n, int i) {
      return half_of(keys[n * (K + 1) + i] * expf(last - decays[n]) * betas[n]);
    };
    for (int e = threadIdx.x; e < K * K; e += blockDim.x) {
      float sum = kept * H[e];
      for (int n = 0; n < count; n++) sum += written(n, e / K) * keys[n * (K + 1) + e % K];
      H[e] = sum;
    }
    for (int e = threadIdx.x; e < K * V; e += blockDim.x) {
      float sum = kept * G[e];
      for (int n = 0; n < count; n++)
        sum += written(n, e / V) * load(a.v, place(first + n) * V + e % V);
      G[e] = sum;
    }
  }
}
