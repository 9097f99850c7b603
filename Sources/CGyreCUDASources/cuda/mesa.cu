// Around the solutions of mesa_solve.cu: the covariance of the keys before each chunk, solutions for keys
// that registers cannot hold, keys as linear attention takes them, gradients put together.
#include "gyre_cuda_engine_args.h"
#include "prelude.cuh"

enum { TILE = 64, STAGE = GYRE_MESA_STAGE };

// MARK: states

// What a chunk (blockIdx.z) adds to H, where the state before the next chunk belongs: 64 × 64 elements of it,
// stage by stage: a stage is one decay of what was and one sum over its keys. 256 threads of 4 × 4 elements.
GYRE_KERNEL mesa_states(const __grid_constant__ gyre_mesa_args a) {
  __shared__ __align__(16) float rows[STAGE][TILE], columns[STAGE][TILE];
  __shared__ float weights[STAGE], kept;
  const long unit = blockIdx.x, b = unit / a.heads, head = unit % a.heads, K = a.keys;
  const long across = (K + TILE - 1) / TILE;
  const long row = blockIdx.y / across * TILE, column = blockIdx.y % across * TILE;
  const int i0 = threadIdx.x / 16 * 4, j0 = threadIdx.x % 16 * 4;
  float H[4][4] = {}, decay = 1.f;

  // Elements n * 256 + thread of a stage, as bits; gates in the first lanes.
  unsigned row_bits[4], column_bits[4], gate_bits = 0, beta_bits = 0;
  int reset = 0;
  auto fetch = [&](long first) {
#pragma unroll
    for (int n = 0; n < 4; n++) {
      const int token = (threadIdx.x + 256 * n) / TILE, i = threadIdx.x % TILE;
      const long at = ((b * a.tokens + first + token) * a.heads + head) * K;
      row_bits[n] = row + i < K ? bits_at(a.k, at + row + i) : 0u;
      column_bits[n] = column + i < K ? bits_at(a.k, at + column + i) : 0u;
    }
    if (threadIdx.x < STAGE) {
      const long token = b * a.tokens + first + threadIdx.x;
      gate_bits = bits_at(a.g, token * a.heads + head);
      beta_bits = bits_at(a.beta, token * a.heads + head);
      reset = a.reset ? a.reset[token] : 0;
    }
  };
  const long end = (blockIdx.z + 1) * a.chunk;
  fetch(blockIdx.z * a.chunk);
  for (long first = blockIdx.z * a.chunk; first < end; first += STAGE) {
    __syncthreads();
#pragma unroll
    for (int n = 0; n < 4; n++) {
      const int token = (threadIdx.x + 256 * n) / TILE, i = threadIdx.x % TILE;
      rows[token][i] = number(a.k, row_bits[n]);
      columns[token][i] = number(a.k, column_bits[n]);
    }
    if (threadIdx.x < 32) {
      // A reset is a gate shut for good. Sums of gates from a token's on, then those after it.
      const bool is_token = threadIdx.x < STAGE;
      float sum = !is_token ? 0.f : reset ? -INFINITY : number(a.g, gate_bits);
#pragma unroll
      for (int o = 1; o < STAGE; o *= 2) {
        const float more = __shfl_down_sync(~0u, sum, o);
        if (threadIdx.x + o < STAGE) sum += more;
      }
      const float after = __shfl_down_sync(~0u, sum, 1);
      if (is_token)
        weights[threadIdx.x] =
            number(a.beta, beta_bits) * (threadIdx.x + 1 < STAGE ? expf(after) : 1.f);
      if (threadIdx.x == 0) kept = expf(sum);
    }
    __syncthreads();
    if (first + STAGE < end) fetch(first + STAGE);
    const float factor = kept;
    decay *= factor;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) H[i][j] *= factor;
#pragma unroll
    for (int t = 0; t < STAGE; t++) {
      const float w = weights[t];
      const float4 u = *(const float4 *)&rows[t][i0], v = *(const float4 *)&columns[t][j0];
      const float x[4] = {w * u.x, w * u.y, w * u.z, w * u.w}, y[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) H[i][j] += x[i] * y[j];
    }
  }
  const long next = unit * a.chunks + blockIdx.z + 1;
  if (blockIdx.y == 0 && threadIdx.x == 0) a.decays[next] = decay;
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const long r = row + i0 + i, c = column + j0 + j;
      if (r < K && c < K) a.states[(next * K + r) * K + c] = H[i][j];
    }
}

// Sums of chunks into states, a thread an element of H.
GYRE_KERNEL mesa_scan(const __grid_constant__ gyre_mesa_args a) {
  enum { AHEAD = 8 };
  const long e = (long)blockIdx.y * blockDim.x + threadIdx.x, size = a.keys * a.keys;
  const long unit = blockIdx.x;
  if (e >= size) return;
  float h = a.H0 ? a.H0[unit * size + e] : 0.f;
  float *states = a.states + unit * a.chunks * size + e;
  const float *decays = a.decays + unit * a.chunks;
  if (a.keeps_first) states[0] = h;
  for (long first = 1; first < a.chunks; first += AHEAD) {
    float sums[AHEAD];
#pragma unroll
    for (int n = 0; n < AHEAD; n++)
      sums[n] = first + n < a.chunks ? states[(first + n) * size] : 0.f;
#pragma unroll
    for (int n = 0; n < AHEAD; n++) {
      if (first + n >= a.chunks) break;
      h = decays[first + n] * h + sums[n];
      states[(first + n) * size] = h;
    }
  }
}

// MARK: large keys

// A block a chunk of a head, with H where `states` has it: for keys of more than GYRE_MESA_REGISTERS
// channels. 256 threads, up to two columns each.
GYRE_KERNEL mesa_solve_large(const __grid_constant__ gyre_mesa_args a) {
  __shared__ float r[GYRE_MESA_KEYS], p[GYRE_MESA_KEYS], key[GYRE_MESA_KEYS], shared[32];
  enum { OWN = GYRE_MESA_KEYS / 256 };
  const long unit = blockIdx.x, b = unit / a.heads, head = unit % a.heads, K = a.keys;
  float *H = a.states + (unit * a.chunks + blockIdx.y) * K * K;
  const long first = blockIdx.y * a.chunk, end = min(first + a.chunk, a.tokens);
  for (long t = first; t < end; t++) {
    const long at = (b * a.tokens + t) * a.heads + head;
    const bool starts = a.reset && a.reset[b * a.tokens + t];
    const float decay = starts ? 0.f : expf(load(a.g, at)), beta = load(a.beta, at);
    float x[OWN], ridge[OWN], mine = 0.f;
#pragma unroll
    for (int n = 0; n < OWN; n++) {
      const long i = threadIdx.x + 256 * n;
      x[n] = ridge[n] = 0.f;
      if (i >= K) continue;
      ridge[n] = load(a.ridge, head * K + i);
      key[i] = load(a.k, at * K + i);
      r[i] = p[i] = load(a.b, at * K + i);
      mine += r[i] * r[i];
    }
    __syncthreads();
    for (long e = threadIdx.x; e < K * K; e += 256)
      H[e] = decay * H[e] + beta * key[e / K] * key[e % K];
    float size = block_sum(mine, shared);
    const float enough = 1e-16f * size;
    for (int step = 0; step < a.steps && !(size <= enough); step++) {
      float image[OWN];
      mine = 0.f;
#pragma unroll
      for (int n = 0; n < OWN; n++) {
        const long i = threadIdx.x + 256 * n;
        image[n] = 0.f;
        if (i >= K) continue;
        for (long j = 0; j < K; j++) image[n] += H[j * K + i] * p[j];
        image[n] += ridge[n] * p[i];
        mine += p[i] * image[n];
      }
      const float alpha = size / (block_sum(mine, shared) + a.epsilon);
      mine = 0.f;
#pragma unroll
      for (int n = 0; n < OWN; n++) {
        const long i = threadIdx.x + 256 * n;
        if (i >= K) continue;
        x[n] += alpha * p[i];
        r[i] -= alpha * image[n];
        mine += r[i] * r[i];
      }
      const float next = block_sum(mine, shared), ratio = next / (size + a.epsilon);
#pragma unroll
      for (int n = 0; n < OWN; n++) {
        const long i = threadIdx.x + 256 * n;
        if (i < K) p[i] = r[i] + ratio * p[i];
      }
      __syncthreads();
      size = next;
    }
#pragma unroll
    for (int n = 0; n < OWN; n++) {
      const long i = threadIdx.x + 256 * n;
      if (i < K) store(a.x, at * K + i, x[n]);
    }
    __syncthreads();
  }
  if (!a.H || blockIdx.y + 1 < a.chunks) return;
  for (long e = threadIdx.x; e < K * K; e += 256) a.H[unit * K * K + e] = H[e];
}

// MARK: keys and gradients

GYRE_KERNEL mesa_keys(const __grid_constant__ gyre_mesa_key_args a) {
  const bool wide = a.keys % 8 == 0 && is_wide(a.k) && is_wide(a.y);
  if (!wide) {
    for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < a.rows * a.keys;
         i += (long)gridDim.x * blockDim.x)
      store(a.y, i, load(a.beta, i / a.keys) * load(a.k, i));
    return;
  }
  GYRE_EACH_EIGHT(i, a.rows * a.keys) {
    float x[8];
    load8(a.k, i, x);
    const float beta = load(a.beta, i / a.keys);
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] *= beta;
    store8(a.y, i, x);
  }
}

// A warp a token and head.
GYRE_KERNEL mesa_gradients(const __grid_constant__ gyre_mesa_gradient_args a) {
  const int lane = threadIdx.x & 31, warps = blockDim.x >> 5;
  for (long row = (long)blockIdx.x * warps + (threadIdx.x >> 5); row < a.rows;
       row += (long)gridDim.x * warps) {
    const float beta = load(a.beta, row);
    float along = 0.f;
    for (long i = row * a.keys + lane; i < (row + 1) * a.keys; i += 32) {
      const float slope = load(a.values, i) + load(a.covariance, i);
      along += load(a.k, i) * slope;
      store(a.dk, i, beta * slope + load(a.other, i));
      a.products[i] = -load(a.z, i) * load(a.x, i);
    }
    along = warp_sum(along);
    if (lane != 0) continue;
    store(a.dbeta, row, along);
    store(a.dg, row, load(a.dg_values, row) + load(a.dg_covariance, row));
  }
}
