// Causal softmax attention over all tokens, a window or a document, with forget gates: any size, on
// the arithmetic units. Scores are s q·k + F[i] - F[j] with F the running sums of the gates, in double
// since differences of large sums are taken.
#include "gyre_cuda_engine_args.h"
#include "prelude.cuh"

#define QUERIES 16   // of a forward block: eight warps with two each
#define KEYS 32      // of a tile
#define LARGEST_VALUE 256  // value channels of a forward block

GYRE_DEVICE long past(const gyre_attention_args &a) { return a.keys - a.queries; }

// The first key that a place sees.
GYRE_DEVICE long first_key(const gyre_attention_args &a, long b, long h, long place) {
  long first = a.first ? a.first[(b * a.heads + h) * a.keys + place] : 0;
  if (a.window && place - a.window + 1 > first) first = place - a.window + 1;
  return first;
}

// One warp a row and head: running sums of the gates, and the last document start or shut gate.
GYRE_KERNEL attention_prepare(gyre_attention_args a) {
  long row = ((long)blockIdx.x * blockDim.x + threadIdx.x) >> 5;
  int lane = threadIdx.x & 31;
  if (row >= a.batch * a.heads) return;
  long b = row / a.heads, h = row % a.heads;
  double sum = 0.;
  int first = 0;
  for (long start = 0; start < a.keys; start += 32) {
    long j = start + lane;
    float g = present(a.g) && j < a.keys ? load(a.g, (b * a.keys + j) * a.heads + h) : 0.f;
    bool begins = j < a.keys && a.starts && a.starts[b * a.keys + j];
    if (g == -INFINITY) g = 0.f, begins = true;
    double part = g;
    int begin = begins ? (int)j : 0;
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
      double other = __shfl_up_sync(~0u, part, o);
      int at = __shfl_up_sync(~0u, begin, o);
      if (lane >= o) part += other, begin = begin > at ? begin : at;
    }
    part += sum;
    begin = begin > first ? begin : first;
    if (j < a.keys) {
      if (a.forget) a.forget[row * a.keys + j] = part;
      a.first[row * a.keys + j] = begin;
    }
    sum = __shfl_sync(~0u, part, 31);
    first = __shfl_sync(~0u, begin, 31);
  }
}

GYRE_DEVICE float bias(const gyre_attention_args &a, long row, long i, long j) {
  return a.forget ? (float)(a.forget[row * a.keys + i] - a.forget[row * a.keys + j]) : 0.f;
}

// Shared: queries [16][K], keys [32][K + 1], values [32][columns].
template <int R> GYRE_DEVICE void attend(const gyre_attention_args &a) {
  extern __shared__ float shared[];
  long K = a.key_size, V = a.value_size;
  long tiles = (a.queries + QUERIES - 1) / QUERIES;
  long tile = blockIdx.x % tiles, row = blockIdx.x / tiles;
  long b = row / a.heads, h = row % a.heads, hk = h / (a.heads / a.key_heads);
  long column = (long)blockIdx.y * LARGEST_VALUE;
  int columns = V - column < LARGEST_VALUE ? (int)(V - column) : LARGEST_VALUE;
  float *q = shared, *k = q + QUERIES * K, *v = k + KEYS * (K + 1);
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  for (long n = threadIdx.x; n < QUERIES * K; n += blockDim.x) {
    long i = tile * QUERIES + n / K;
    q[n] = i < a.queries
               ? a.scale * load(a.q, ((b * a.queries + i) * a.heads + h) * K + n % K) : 0.f;
  }
  long place[2], first[2];
  float top[2], sum[2], out[2][R];
#pragma unroll
  for (int p = 0; p < 2; p++) {
    long i = tile * QUERIES + 2 * warp + p;
    place[p] = i < a.queries ? past(a) + i : -1;
    first[p] = place[p] >= 0 ? first_key(a, b, h, place[p]) : 0;
    top[p] = -INFINITY, sum[p] = 0.f;
#pragma unroll
    for (int r = 0; r < R; r++) out[p][r] = 0.f;
  }
  long low = first_key(a, b, h, past(a) + tile * QUERIES);
  long last = tile * QUERIES + QUERIES < a.queries ? tile * QUERIES + QUERIES : a.queries;
  long high = past(a) + last;
  for (long start = low / KEYS * KEYS; start < high; start += KEYS) {
    __syncthreads();
    for (long n = threadIdx.x; n < KEYS * K; n += blockDim.x) {
      long j = start + n / K;
      k[n / K * (K + 1) + n % K] =
          j < a.keys ? load(a.k, ((b * a.keys + j) * a.key_heads + hk) * K + n % K) : 0.f;
    }
    for (long n = threadIdx.x; n < KEYS * columns; n += blockDim.x) {
      long j = start + n / columns;
      v[n] = j < a.keys
                 ? load(a.v, ((b * a.keys + j) * a.key_heads + hk) * V + column + n % columns) : 0.f;
    }
    __syncthreads();
    float dot[2] = {0.f, 0.f};
    const float *mine = k + lane * (K + 1), *q0 = q + 2 * warp * K, *q1 = q0 + K;
    for (long c = 0; c < K; c++) {
      dot[0] += q0[c] * mine[c];
      dot[1] += q1[c] * mine[c];
    }
    long j = start + lane;
#pragma unroll
    for (int p = 0; p < 2; p++) {
      bool seen = place[p] >= 0 && j >= first[p] && j <= place[p];
      float score = seen ? dot[p] + bias(a, row, place[p], j) : -INFINITY;
      float high_score = fmaxf(top[p], warp_max(score));
      if (high_score == -INFINITY) continue;
      float weight = expf(score - high_score), old = expf(top[p] - high_score);
      top[p] = high_score;
      sum[p] = sum[p] * old + warp_sum(weight);
#pragma unroll
      for (int r = 0; r < R; r++) out[p][r] *= old;
      for (int n = 0; n < KEYS; n++) {
        float w = __shfl_sync(~0u, weight, n);
#pragma unroll
        for (int r = 0; r < R; r++) {
          int c = lane + 32 * r;
          if (c < columns) out[p][r] += w * v[n * columns + c];
        }
      }
    }
  }
#pragma unroll
  for (int p = 0; p < 2; p++) {
    if (place[p] < 0) continue;
    long i = place[p] - past(a), at = (b * a.queries + i) * a.heads + h;
#pragma unroll
    for (int r = 0; r < R; r++) {
      int c = lane + 32 * r;
      if (c < columns) store(a.y, at * V + column + c, out[p][r] / sum[p]);
    }
    if (present(a.sums) && column == 0 && lane == 0) store(a.sums, at, top[p] + logf(sum[p]));
  }
}
GYRE_KERNEL attention_forward_64(gyre_attention_args a) { attend<2>(a); }
GYRE_KERNEL attention_forward_128(gyre_attention_args a) { attend<4>(a); }
GYRE_KERNEL attention_forward_256(gyre_attention_args a) { attend<8>(a); }

// MARK: backward
//
// ds = p (dy·v - dy·y). Blocks of 256 hold a tile of 32 keys (or queries) and go through the queries
// (or keys) 16 at a time: all threads make the 32 × 16 probabilities and their gradients in shared
// memory, then each adds to 1/8 of the columns of one key (or query).

struct Pair {
  float p, ds;
};
GYRE_DEVICE Pair pair(
    const gyre_attention_args &a, long b, long h, const float *q, const float *k, const float *dy,
    const float *v, long i, long j) {
  long place = past(a) + i;
  if (i >= a.queries || j > place || j < first_key(a, b, h, place)) return {0.f, 0.f};
  long row = b * a.heads + h, at = (b * a.queries + i) * a.heads + h;
  float dot = 0.f, slope = 0.f;
  for (long c = 0; c < a.key_size; c++) dot += q[c] * k[c];
  for (long c = 0; c < a.value_size; c++) slope += dy[c] * v[c];
  float p = expf(a.scale * dot + bias(a, row, place, j) - load(a.sums, at));
  return {p, p * (slope - a.delta[at])};
}

GYRE_DEVICE void stage(
    float *to, const gyre_array &from, long rows, long first, long count, long stride, long base,
    long size) {
  for (long n = threadIdx.x; n < rows * size; n += blockDim.x) {
    long r = n / size, i = first + r;
    to[r * (size + 1) + n % size] = i < count ? load(from, base + i * stride + n % size) : 0.f;
  }
}

template <int C> GYRE_DEVICE void key_gradients(const gyre_attention_args &a) {
  extern __shared__ float shared[];
  long K = a.key_size, V = a.value_size;
  long tiles = (a.keys + KEYS - 1) / KEYS;
  long tile = blockIdx.x % tiles, b = blockIdx.x / tiles / a.key_heads;
  long hk = blockIdx.x / tiles % a.key_heads, group = a.heads / a.key_heads;
  float *k = shared, *v = k + KEYS * (K + 1), *q = v + KEYS * (V + 1), *dy = q + 16 * (K + 1);
  float *p = dy + 16 * (V + 1), *ds = p + KEYS * 16;
  stage(k, a.k, KEYS, tile * KEYS, a.keys, a.key_heads * K, (b * a.keys * a.key_heads + hk) * K, K);
  stage(v, a.v, KEYS, tile * KEYS, a.keys, a.key_heads * V, (b * a.keys * a.key_heads + hk) * V, V);
  int key = threadIdx.x >> 3, part = threadIdx.x & 7;
  float dk[C], dv[C];
#pragma unroll
  for (int c = 0; c < C; c++) dk[c] = dv[c] = 0.f;
  long begin = tile * KEYS - past(a) > 0 ? tile * KEYS - past(a) : 0;
  for (long h = hk * group; h < (hk + 1) * group; h++) {
    float column = 0.f;
    for (long start = begin / 16 * 16; start < a.queries; start += 16) {
      __syncthreads();
      stage(q, a.q, 16, start, a.queries, a.heads * K, (b * a.queries * a.heads + h) * K, K);
      stage(dy, a.dy, 16, start, a.queries, a.heads * V, (b * a.queries * a.heads + h) * V, V);
      __syncthreads();
      for (int n = threadIdx.x; n < KEYS * 16; n += blockDim.x) {
        int j = n & 31, i = n >> 5;
        Pair x = {0.f, 0.f};
        if (tile * KEYS + j < a.keys)
          x = pair(
              a, b, h, q + i * (K + 1), k + j * (K + 1), dy + i * (V + 1), v + j * (V + 1),
              start + i, tile * KEYS + j);
        p[j * 16 + i] = x.p;
        ds[j * 16 + i] = x.ds;
      }
      __syncthreads();
      for (int i = 0; i < 16; i++) {
        float weight = p[key * 16 + i], slope = ds[key * 16 + i];
        column += slope;
#pragma unroll
        for (int c = 0; c < C; c++) {
          int at = part + 8 * c;
          if (at < K) dk[c] += slope * q[i * (K + 1) + at];
          if (at < V) dv[c] += weight * dy[i * (V + 1) + at];
        }
      }
    }
    if (a.columns && part == 0 && tile * KEYS + key < a.keys)
      a.columns[(b * a.heads + h) * a.keys + tile * KEYS + key] = column;
  }
  long j = tile * KEYS + key;
  if (j >= a.keys) return;
  long at = (b * a.keys + j) * a.key_heads + hk;
#pragma unroll
  for (int c = 0; c < C; c++) {
    int channel = part + 8 * c;
    if (channel < K) store(a.dk, at * K + channel, a.scale * dk[c]);
    if (channel < V) store(a.dv, at * V + channel, dv[c]);
  }
}
GYRE_KERNEL attention_keys_64(gyre_attention_args a) { key_gradients<8>(a); }
GYRE_KERNEL attention_keys_128(gyre_attention_args a) { key_gradients<16>(a); }
GYRE_KERNEL attention_keys_256(gyre_attention_args a) { key_gradients<32>(a); }
GYRE_KERNEL attention_keys_512(gyre_attention_args a) { key_gradients<64>(a); }

template <int C> GYRE_DEVICE void query_gradients(const gyre_attention_args &a) {
  extern __shared__ float shared[];
  long K = a.key_size, V = a.value_size;
  long tiles = (a.queries + 31) / 32;
  long tile = blockIdx.x % tiles, row = blockIdx.x / tiles;
  long b = row / a.heads, h = row % a.heads, hk = h / (a.heads / a.key_heads);
  float *q = shared, *dy = q + 32 * (K + 1), *k = dy + 32 * (V + 1), *v = k + 16 * (K + 1);
  float *ds = v + 16 * (V + 1);
  stage(q, a.q, 32, tile * 32, a.queries, a.heads * K, (b * a.queries * a.heads + h) * K, K);
  stage(dy, a.dy, 32, tile * 32, a.queries, a.heads * V, (b * a.queries * a.heads + h) * V, V);
  int query = threadIdx.x >> 3, part = threadIdx.x & 7;
  float dq[C], row_sum = 0.f;
#pragma unroll
  for (int c = 0; c < C; c++) dq[c] = 0.f;
  long last = tile * 32 + 32 < a.queries ? tile * 32 + 32 : a.queries;
  for (long start = first_key(a, b, h, past(a) + tile * 32) / 16 * 16; start < past(a) + last;
       start += 16) {
    __syncthreads();
    stage(k, a.k, 16, start, a.keys, a.key_heads * K, (b * a.keys * a.key_heads + hk) * K, K);
    stage(v, a.v, 16, start, a.keys, a.key_heads * V, (b * a.keys * a.key_heads + hk) * V, V);
    __syncthreads();
    for (int n = threadIdx.x; n < 32 * 16; n += blockDim.x) {
      int i = n & 31, j = n >> 5;
      Pair x = {0.f, 0.f};
      if (start + j < a.keys)
        x = pair(
            a, b, h, q + i * (K + 1), k + j * (K + 1), dy + i * (V + 1), v + j * (V + 1),
            tile * 32 + i, start + j);
      ds[i * 16 + j] = x.ds;
    }
    __syncthreads();
    for (int j = 0; j < 16; j++) {
      float slope = ds[query * 16 + j];
      row_sum += slope;
#pragma unroll
      for (int c = 0; c < C; c++)
        if (part + 8 * c < K) dq[c] += slope * k[j * (K + 1) + part + 8 * c];
    }
  }
  long i = tile * 32 + query;
  if (i >= a.queries) return;
  if (a.rows && part == 0) a.rows[row * a.queries + i] = row_sum;
#pragma unroll
  for (int c = 0; c < C; c++)
    if (part + 8 * c < K)
      store(a.dq, ((b * a.queries + i) * a.heads + h) * K + part + 8 * c, a.scale * dq[c]);
}
GYRE_KERNEL attention_queries_64(gyre_attention_args a) { query_gradients<8>(a); }
GYRE_KERNEL attention_queries_128(gyre_attention_args a) { query_gradients<16>(a); }
GYRE_KERNEL attention_queries_256(gyre_attention_args a) { query_gradients<32>(a); }
GYRE_KERNEL attention_queries_512(gyre_attention_args a) { query_gradients<64>(a); }

// dg[l] = sum over i >= l > j of ds[i, j] = sum over i >= l of the rows' sums (zero but for rounding) -
// sum over j >= l of the columns'. One warp a row and head, from the end.
GYRE_KERNEL attention_gates(gyre_attention_args a) {
  long row = ((long)blockIdx.x * blockDim.x + threadIdx.x) >> 5;
  int lane = threadIdx.x & 31;
  if (row >= a.batch * a.heads) return;
  long b = row / a.heads, h = row % a.heads;
  float sum = 0.f;
  for (long end = a.keys; end > 0; end -= 32) {
    long j = end - 1 - lane;
    float part = j >= 0 ? a.columns[row * a.keys + j] : 0.f;
    if (j >= past(a)) part -= a.rows[row * a.queries + j - past(a)];
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
      float other = __shfl_up_sync(~0u, part, o);
      if (lane >= o) part += other;
    }
    part += sum;
    if (j >= 0) store(a.dg, (b * a.keys + j) * a.heads + h, -part);
    sum = __shfl_sync(~0u, part, 31);
  }
}
