// Sums of the partial gradients of recurrences with a matrix state, over blocks of columns and over
// the heads that share a key. One block of 128 a token and key head.
#include "gyre_cuda_engine_args.h"
#include "prelude.cuh"

GYRE_KERNEL head_sums(gyre_head_sum_args a) {
  __shared__ float shared[32];
  long span = a.last - a.first, hk = blockIdx.x % a.key_heads;
  long s = blockIdx.x / a.key_heads % span, b = blockIdx.x / a.key_heads / span;
  long t = a.first + s, group = a.heads / a.key_heads, K = a.key_size;
  long key = ((b * a.tokens + t) * a.key_heads + hk) * K;
  for (long base = 0; base < K; base += blockDim.x) {
    long k = base + threadIdx.x;
    float dq = 0.f, dk = 0.f;
    for (long h = hk * group; h < (hk + 1) * group && k < K; h++) {
      long out = ((b * a.tokens + t) * a.heads + h) * K + k;
      float sum[5] = {0.f, 0.f, 0.f, 0.f, 0.f};
      for (long tile = 0; tile < a.tiles; tile++) {
        const float *p = a.partial + (((tile * a.batch + b) * span + s) * a.heads + h) * a.vectors * K;
        for (int n = 0; n < 5; n++)
          if (n < a.vectors) sum[n] += p[n * K + k];
      }
      dq += sum[0];
      dk += sum[1];
      if (a.decay == GYRE_DECAY_VECTOR) store(a.dg, out, sum[2]);
      if (present(a.da)) store(a.da, out, sum[3]);
      if (present(a.db)) store(a.db, out, sum[4]);
    }
    if (k < K) {
      store(a.dq, key + k, dq);
      store(a.dk, key + k, dk);
    }
  }
  bool sums_gate = a.decay == GYRE_DECAY_SCALAR || a.decay == GYRE_DECAY_CONSTANT;
  if (!sums_gate && !present(a.dscalar)) return;
  for (long h = hk * group; h < (hk + 1) * group; h++) {
    long token = (b * a.tokens + t) * a.heads + h;
    float dg = 0.f, dgate = 0.f, dbeta = 0.f;
    for (long tile = 0; tile < a.tiles; tile++) {
      long at = ((tile * a.batch + b) * span + s) * a.heads + h;
      const float *p = a.partial + at * a.vectors * K;
      for (long k = threadIdx.x; k < K; k += blockDim.x) {
        dg += p[2 * K + k];
        if (a.scalar_is_gate) dgate += load(a.k, key + k) * p[K + k];
      }
      if (present(a.dscalar) && !a.scalar_is_gate) dbeta += a.partial_scalar[at];
    }
    dg = block_sum(dg, shared);
    if (a.scalar_is_gate) dgate = block_sum(dgate, shared);
    if (threadIdx.x) continue;
    if (a.decay == GYRE_DECAY_SCALAR) store(a.dg, token, dg);
    if (a.decay == GYRE_DECAY_CONSTANT) a.dg_head[token] = dg;
    if (present(a.dscalar)) store(a.dscalar, token, a.scalar_is_gate ? dgate : dbeta);
  }
}

// Sums of bfloat16 gradients over the heads that share keys: eight columns a thread, blockIdx.y of two
// arrays. Four heads are on their way at a time.
GYRE_KERNEL __launch_bounds__(256) group_sums(const __grid_constant__ gyre_group_sum_args a) {
  const unsigned short *x = (const unsigned short *)a.x[blockIdx.y];
  gyre_array out = blockIdx.y ? a.out[1] : a.out[0];
  long pieces = a.columns / 8, count = a.rows * pieces;
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < count;
       i += (long)gridDim.x * blockDim.x) {
    const uint4 *from = (const uint4 *)x + i / pieces * a.group * pieces + i % pieces;
    float sum[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
    for (long g0 = 0; g0 < a.group; g0 += 4) {
      uint4 part[4];
#pragma unroll
      for (int n = 0; n < 4; n++)
        part[n] = g0 + n < a.group ? from[(g0 + n) * pieces] : make_uint4(0, 0, 0, 0);
#pragma unroll
      for (int n = 0; n < 4; n++) {
        const unsigned word[4] = {part[n].x, part[n].y, part[n].z, part[n].w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
          sum[j * 2] += __uint_as_float(word[j] << 16);
          sum[j * 2 + 1] += __uint_as_float(word[j] & 0xffff0000u);
        }
      }
    }
    store8(out, i * 8, sum);
  }
}
