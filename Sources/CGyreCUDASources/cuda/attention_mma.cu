// Causal softmax attention on bfloat16 values with the tensor cores (mma m16n8k16, sums in float32):
// four warps of 16 rows, tiles of keys (or queries) through shared memory, probabilities from
// accumulators straight into the next product's operand. Keys and values up to 64 or 128 channels; the
// backward pass makes the scores again, once for the keys' gradients and once for the queries', so that
// every sum has one order. Masks, windows, documents and forget gates as in attention.cu.
// Variants: SIZE=64,128
#include "gyre_cuda_engine_args.h"
#include "prelude.cuh"

#ifndef SIZE
#define SIZE 64
#endif
#define ROW (SIZE + 8)               // of a tile in shared memory: 16 bytes more, no bank conflicts
#define ROWS_OF_BLOCK 64
#define TILE (SIZE == 64 ? 64 : 32)  // rows that go through shared memory at a time
typedef unsigned short half_t;       // bfloat16

GYRE_DEVICE unsigned address(const half_t *p) {
  return (unsigned)__cvta_generic_to_shared(p);
}
// Four 8 × 8 matrices; each lane names a row.
GYRE_DEVICE void matrices(unsigned (&r)[4], const half_t *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address(row)));
}
GYRE_DEVICE void matrices_transposed(unsigned (&r)[4], const half_t *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address(row)));
}
GYRE_DEVICE void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
GYRE_DEVICE unsigned packed(float low, float high) {
  unsigned r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}

// c[n] += A B' with A 16 rows of a tile from `a` on, B rows of a tile: products over channels.
template <int N>
GYRE_DEVICE void rows_by_rows(float (&c)[N][4], const half_t *a, const half_t *b, int lane) {
#pragma unroll
  for (int k = 0; k < SIZE; k += 16) {
    unsigned left[4];
    matrices(left, a + (lane & 15) * ROW + k + (lane >> 4) * 8);
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      unsigned right[4];
      matrices(right, b + (n * 8 + (lane >> 4) * 8 + (lane & 7)) * ROW + k + (lane >> 3 & 1) * 8);
      multiply(c[n], left, right[0], right[1]);
      multiply(c[n + 1], left, right[2], right[3]);
    }
  }
}
// c[n] += P B with P 16 × 8 N in accumulators and B the rows of a tile: products over rows.
template <int N>
GYRE_DEVICE void weights_by_rows(
    float (&c)[SIZE / 8][4], const float (&p)[N][4], const half_t *b, int lane) {
#pragma unroll
  for (int k = 0; k < N; k += 2) {
    unsigned left[4] = {packed(p[k][0], p[k][1]), packed(p[k][2], p[k][3]),
                        packed(p[k + 1][0], p[k + 1][1]), packed(p[k + 1][2], p[k + 1][3])};
#pragma unroll
    for (int n = 0; n < SIZE / 8; n += 2) {
      unsigned right[4];
      matrices_transposed(
          right, b + (k * 8 + (lane & 7) + (lane >> 3 & 1) * 8) * ROW + n * 8 + (lane >> 4) * 8);
      multiply(c[n], left, right[0], right[1]);
      multiply(c[n + 1], left, right[2], right[3]);
    }
  }
}

// Rows [first, first + rows) of [count, stride] into a tile, zeros beyond; 128 threads.
GYRE_DEVICE void stage(
    half_t *to, int rows, const half_t *from, long first, long count, long stride, long size) {
  for (int n = threadIdx.x; n < rows * (SIZE / 8); n += 128) {
    int r = n / (SIZE / 8), c = n % (SIZE / 8) * 8;
    uint4 x = make_uint4(0, 0, 0, 0);
    if (first + r < count) {
      const half_t *p = from + (first + r) * stride + c;
      if (c + 8 <= size && ((unsigned long)p & 15) == 0) {
        x = *(const uint4 *)p;
      } else {
        half_t e[8];
#pragma unroll
        for (int j = 0; j < 8; j++) e[j] = c + j < size ? p[j] : (half_t)0;
        x = make_uint4(e[0] | e[1] << 16, e[2] | e[3] << 16, e[4] | e[5] << 16, e[6] | e[7] << 16);
      }
    }
    *(uint4 *)(to + r * ROW + c) = x;
  }
}

struct Problem {
  long b, h, hk, past;
  const half_t *q, *k, *v, *dy;
  GYRE_DEVICE Problem(const gyre_attention_args &a, long row) {
    b = row / a.heads;
    h = row % a.heads;
    hk = h / (a.heads / a.key_heads);
    past = a.keys - a.queries;
    q = (const half_t *)a.q.data + (b * a.queries * a.heads + h) * a.key_size;
    k = (const half_t *)a.k.data + (b * a.keys * a.key_heads + hk) * a.key_size;
    v = (const half_t *)a.v.data + (b * a.keys * a.key_heads + hk) * a.value_size;
    dy = (const half_t *)a.dy.data + (b * a.queries * a.heads + h) * a.value_size;
  }
  // The first key that query i sees.
  GYRE_DEVICE long first(const gyre_attention_args &a, long i) const {
    long place = past + i, low = 0;
    if (a.first) low = a.first[(b * a.heads + h) * a.keys + place];
    if (a.window && place - a.window + 1 > low) low = place - a.window + 1;
    return low;
  }
  GYRE_DEVICE float bias(const gyre_attention_args &a, long i, long j) const {
    if (!a.forget) return 0.f;
    const double *f = a.forget + (b * a.heads + h) * a.keys;
    return (float)(f[past + i] - f[j]);
  }
};

#define CLEAR(c)                                                \
  _Pragma("unroll") for (int n_ = 0; n_ < sizeof(c) / 16; n_++) \
      c[n_][0] = c[n_][1] = c[n_][2] = c[n_][3] = 0.f

// Shared: queries [64], keys [TILE], values [TILE], rows of ROW.
GYRE_KERNEL __launch_bounds__(128) attention_mma_forward(gyre_attention_args a) {
  extern __shared__ __align__(16) half_t tiles_of_forward[];
  half_t *q = tiles_of_forward, *k = q + ROWS_OF_BLOCK * ROW, *v = k + TILE * ROW;
  long blocks = (a.queries + ROWS_OF_BLOCK - 1) / ROWS_OF_BLOCK;
  // The longest rows first.
  long block = blocks - 1 - blockIdx.x % blocks;
  Problem p(a, blockIdx.x / blocks);
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  long start = block * ROWS_OF_BLOCK;
  stage(q, ROWS_OF_BLOCK, p.q, start, a.queries, a.heads * a.key_size, a.key_size);
  long query[2], low[2];
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f}, out[SIZE / 8][4];
  CLEAR(out);
#pragma unroll
  for (int r = 0; r < 2; r++) {
    query[r] = start + warp * 16 + (lane >> 2) + 8 * r;
    low[r] = query[r] < a.queries ? p.first(a, query[r]) : 0x7fffffffffff;
  }
  long end = start + ROWS_OF_BLOCK < a.queries ? start + ROWS_OF_BLOCK : a.queries;
  for (long j = p.first(a, start) / TILE * TILE; j < p.past + end; j += TILE) {
    __syncthreads();
    stage(k, TILE, p.k, j, a.keys, a.key_heads * a.key_size, a.key_size);
    stage(v, TILE, p.v, j, a.keys, a.key_heads * a.value_size, a.value_size);
    __syncthreads();
    float s[TILE / 8][4];
    CLEAR(s);
    rows_by_rows<TILE / 8>(s, q + warp * 16 * ROW, k, lane);
    float high[2] = {top[0], top[1]};
#pragma unroll
    for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        int r = e >> 1;
        long key = j + n * 8 + (lane & 3) * 2 + (e & 1);
        bool seen = key >= low[r] && key <= p.past + query[r];
        s[n][e] = seen ? a.scale * s[n][e] + p.bias(a, query[r], key) : -INFINITY;
        high[r] = fmaxf(high[r], s[n][e]);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      high[r] = fmaxf(high[r], __shfl_xor_sync(~0u, high[r], 1));
      high[r] = fmaxf(high[r], __shfl_xor_sync(~0u, high[r], 2));
      float old = high[r] == -INFINITY ? 1.f : expf(top[r] - high[r]);
      top[r] = high[r];
      sum[r] *= old;
#pragma unroll
      for (int n = 0; n < SIZE / 8; n++) out[n][2 * r] *= old, out[n][2 * r + 1] *= old;
    }
#pragma unroll
    for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        s[n][e] = s[n][e] == -INFINITY ? 0.f : expf(s[n][e] - top[e >> 1]);
        sum[e >> 1] += s[n][e];
      }
    }
    weights_by_rows<TILE / 8>(out, s, v, lane);
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
    sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
    if (query[r] >= a.queries) continue;
    long at = (p.b * a.queries + query[r]) * a.heads + p.h;
    if (present(a.sums) && (lane & 3) == 0) store(a.sums, at, top[r] + logf(sum[r]));
#pragma unroll
    for (int n = 0; n < SIZE / 8; n++) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        long c = n * 8 + (lane & 3) * 2 + e;
        if (c < a.value_size) store(a.y, at * a.value_size + c, out[n][2 * r + e] / sum[r]);
      }
    }
  }
}

// Gradients of 64 queries. Shared: queries and dy [64], keys and values [TILE].
GYRE_KERNEL __launch_bounds__(128) attention_mma_queries(gyre_attention_args a) {
  extern __shared__ __align__(16) half_t tiles_of_queries[];
  half_t *q = tiles_of_queries, *dy = q + ROWS_OF_BLOCK * ROW, *k = dy + ROWS_OF_BLOCK * ROW;
  half_t *v = k + TILE * ROW;
  long blocks = (a.queries + ROWS_OF_BLOCK - 1) / ROWS_OF_BLOCK;
  long block = blocks - 1 - blockIdx.x % blocks;
  Problem p(a, blockIdx.x / blocks);
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  long start = block * ROWS_OF_BLOCK;
  stage(q, ROWS_OF_BLOCK, p.q, start, a.queries, a.heads * a.key_size, a.key_size);
  stage(dy, ROWS_OF_BLOCK, p.dy, start, a.queries, a.heads * a.value_size, a.value_size);
  long query[2], low[2];
  float sums[2], delta[2], total[2] = {0.f, 0.f}, dq[SIZE / 8][4];
  CLEAR(dq);
#pragma unroll
  for (int r = 0; r < 2; r++) {
    query[r] = start + warp * 16 + (lane >> 2) + 8 * r;
    bool exists = query[r] < a.queries;
    long at = (p.b * a.queries + query[r]) * a.heads + p.h;
    low[r] = exists ? p.first(a, query[r]) : 0x7fffffffffff;
    sums[r] = exists ? load(a.sums, at) : 0.f;
    delta[r] = exists ? a.delta[at] : 0.f;
  }
  long end = start + ROWS_OF_BLOCK < a.queries ? start + ROWS_OF_BLOCK : a.queries;
  for (long j = p.first(a, start) / TILE * TILE; j < p.past + end; j += TILE) {
    __syncthreads();
    stage(k, TILE, p.k, j, a.keys, a.key_heads * a.key_size, a.key_size);
    stage(v, TILE, p.v, j, a.keys, a.key_heads * a.value_size, a.value_size);
    __syncthreads();
    float s[TILE / 8][4], d[TILE / 8][4];
    CLEAR(s);
    CLEAR(d);
    rows_by_rows<TILE / 8>(s, q + warp * 16 * ROW, k, lane);
    rows_by_rows<TILE / 8>(d, dy + warp * 16 * ROW, v, lane);
#pragma unroll
    for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        int r = e >> 1;
        long key = j + n * 8 + (lane & 3) * 2 + (e & 1);
        bool seen = key >= low[r] && key <= p.past + query[r];
        float w = seen ? expf(a.scale * s[n][e] + p.bias(a, query[r], key) - sums[r]) : 0.f;
        s[n][e] = w * (d[n][e] - delta[r]);
        total[r] += s[n][e];
      }
    }
    weights_by_rows<TILE / 8>(dq, s, k, lane);
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    total[r] += __shfl_xor_sync(~0u, total[r], 1);
    total[r] += __shfl_xor_sync(~0u, total[r], 2);
    if (query[r] >= a.queries) continue;
    if (a.rows && (lane & 3) == 0)
      a.rows[(p.b * a.heads + p.h) * a.queries + query[r]] = total[r];
    long at = ((p.b * a.queries + query[r]) * a.heads + p.h) * a.key_size;
#pragma unroll
    for (int n = 0; n < SIZE / 8; n++) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        long c = n * 8 + (lane & 3) * 2 + e;
        if (c < a.key_size) store(a.dq, at + c, a.scale * dq[n][2 * r + e]);
      }
    }
  }
}

// Gradients of 64 keys and values, over the queries of all heads that share them. Shared: keys and
// values [64], queries and dy [TILE], sums, delta and first key of each query of the tile.
GYRE_KERNEL __launch_bounds__(128) attention_mma_keys(gyre_attention_args a) {
  extern __shared__ __align__(16) half_t tiles_of_keys[];
  __shared__ float sums[TILE], delta[TILE];
  __shared__ long low[TILE];
  half_t *k = tiles_of_keys, *v = k + ROWS_OF_BLOCK * ROW, *q = v + ROWS_OF_BLOCK * ROW;
  half_t *dy = q + TILE * ROW;
  long blocks = (a.keys + ROWS_OF_BLOCK - 1) / ROWS_OF_BLOCK, group = a.heads / a.key_heads;
  long start = blockIdx.x % blocks * ROWS_OF_BLOCK, pair = blockIdx.x / blocks;
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  float dk[SIZE / 8][4], dv[SIZE / 8][4];
  CLEAR(dk);
  CLEAR(dv);
  long key[2] = {start + warp * 16 + (lane >> 2), start + warp * 16 + (lane >> 2) + 8};
  for (long member = 0; member < group; member++) {
    Problem p(a, pair / a.key_heads * a.heads + pair % a.key_heads * group + member);
    if (member == 0) {
      stage(k, ROWS_OF_BLOCK, p.k, start, a.keys, a.key_heads * a.key_size, a.key_size);
      stage(v, ROWS_OF_BLOCK, p.v, start, a.keys, a.key_heads * a.value_size, a.value_size);
    }
    float column[2] = {0.f, 0.f};
    long begin = start - p.past > 0 ? start - p.past : 0;
    for (long i = begin / TILE * TILE; i < a.queries; i += TILE) {
      // Queries whose window has left the block see none of its keys, nor do later ones.
      if (a.window && p.past + i - a.window + 1 > start + ROWS_OF_BLOCK - 1) break;
      __syncthreads();
      stage(q, TILE, p.q, i, a.queries, a.heads * a.key_size, a.key_size);
      stage(dy, TILE, p.dy, i, a.queries, a.heads * a.value_size, a.value_size);
      if (threadIdx.x < TILE) {
        long n = i + threadIdx.x, at = (p.b * a.queries + n) * a.heads + p.h;
        bool exists = n < a.queries;
        sums[threadIdx.x] = exists ? load(a.sums, at) : 0.f;
        delta[threadIdx.x] = exists ? a.delta[at] : 0.f;
        low[threadIdx.x] = exists ? p.first(a, n) : 0x7fffffffffff;
      }
      __syncthreads();
      float s[TILE / 8][4], d[TILE / 8][4];
      CLEAR(s);
      CLEAR(d);
      rows_by_rows<TILE / 8>(s, k + warp * 16 * ROW, q, lane);
      rows_by_rows<TILE / 8>(d, v + warp * 16 * ROW, dy, lane);
#pragma unroll
      for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          int r = e >> 1, column_of = n * 8 + (lane & 3) * 2 + (e & 1);
          long query = i + column_of;
          bool seen = key[r] < a.keys && key[r] >= low[column_of] && key[r] <= p.past + query;
          float w = seen ? expf(a.scale * s[n][e] + p.bias(a, query, key[r]) - sums[column_of]) : 0.f;
          s[n][e] = w;
          d[n][e] = w * (d[n][e] - delta[column_of]);
          column[r] += d[n][e];
        }
      }
      weights_by_rows<TILE / 8>(dv, s, dy, lane);
      weights_by_rows<TILE / 8>(dk, d, q, lane);
    }
    if (!a.columns) continue;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      column[r] += __shfl_xor_sync(~0u, column[r], 1);
      column[r] += __shfl_xor_sync(~0u, column[r], 2);
      if ((lane & 3) == 0 && key[r] < a.keys)
        a.columns[(p.b * a.heads + p.h) * a.keys + key[r]] = column[r];
    }
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    if (key[r] >= a.keys) continue;
    long at = (pair / a.key_heads * a.keys + key[r]) * a.key_heads + pair % a.key_heads;
#pragma unroll
    for (int n = 0; n < SIZE / 8; n++) {
#pragma unroll
      for (int e = 0; e < 2; e++) {
        long c = n * 8 + (lane & 3) * 2 + e;
        if (c < a.key_size) store(a.dk, at * a.key_size + c, a.scale * dk[n][2 * r + e]);
        if (c < a.value_size) store(a.dv, at * a.value_size + c, dv[n][2 * r + e]);
      }
    }
  }
}
