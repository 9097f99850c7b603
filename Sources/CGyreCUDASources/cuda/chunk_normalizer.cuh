// What divides the outputs of linear attention, for gates without channels:
//
//     zₜ = Dₜ zₜ₋₁ + wₜ kₜ    a = s zₜ·qₜ    y = o / d,  d = a + ε  or  max(|a|, bound) + ε
//
// z is one more value column whose values are 1. prepare sums the rows of P̃ and the columns of K̃,
// each warp of a walk carries z along in float32 and multiplies Q̃ by it, as two bf16 parts, beside its
// own columns. In the gradient dn = dy / d takes the place of dy, and da = −(dy·y) / d that of the one
// more column: rank-one terms in float32.
//
// With exponential input gates w = e^(ĩ − m) and D = e^(g + m₋ − m): m, a running maximum, is a scan
// of (rise, top) pairs. `stabilize` gives m at the starts of chunks; the rest is in ScalarDecays.
#pragma once
#include "chunk_common.cuh"

/// 128 threads: rows of P̃ and columns of K̃, as the products see them. `share`: float [4][256].
template <int K>
DEV void sum_tiles(const MixerArgs &p, const u16 *products, const u16 *keys, float *share,
                   long long place) {
  constexpr int PAIRS = K / 2, GROUPS = PAIRS < 128 ? 128 / PAIRS : 1, ROWS = 64 / GROUPS;
  {
    const int row = threadIdx.x >> 1, half = threadIdx.x & 1;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint4 x = ((const uint4 *)(products + row * 64))[half * 4 + (i ^ (row & 3))];
      const u32 part[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int j = 0; j < 4; j++) sum += low_of(part[j]) + high_of(part[j]);
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    if (!half) p.n.row_sums[place * 128 + row] = sum;
  }
  const int pair = threadIdx.x % PAIRS, group = threadIdx.x / PAIRS;
  two sum = {0.0f, 0.0f};
#pragma unroll 8
  for (int i = 0; i < ROWS; i++) {
    const u32 x = *(const u32 *)(keys + at<K>(group * ROWS + i, pair * 2));
    sum.x += low_of(x);
    sum.y += high_of(x);
  }
  *(two *)(share + group * K + pair * 2) = sum;
  __syncthreads();
  for (int k = threadIdx.x; k < K; k += 128) {
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < GROUPS; i++) all += share[i * K + k];
    p.n.key_sums[place * K + k] = all;
  }
}

/// d and its slope in a, without a branch: walks have one warp a scheduler.
struct Divisor {
  float value, slope;
  DEV_MEMBER Divisor(const NormalizerArgs &n, float amount, float bound) {
    const float size = amount < 0.0f ? -amount : amount;
    const float limit = n.divisor == 2 ? n.floor : bound;
    const bool is_sum = n.divisor == 1, is_large = size > limit;
    value = (is_sum ? amount : is_large ? size : limit) + n.epsilon;
    slope = is_sum ? 1.0f : is_large ? (amount > 0.0f ? 1.0f : -1.0f) : 0.0f;
  }
};

/// z, or backward its gradient, as a walk carries it: every lane holds the channels
/// 16 i + (lane & 3)·2 + {0, 1, 8, 9}, eight lanes the same ones.
template <int K, bool BACK>
struct WalkVector {
  static constexpr int STEPS = K / 16;
  two z[STEPS][2];
  u32 column[BACK ? 1 : STEPS][2];  // z as columns of a product

  DEV_MEMBER static int channel(int i, int h) {
    return i * 16 + (threadIdx.x & 3) * 2 + h * 8;
  }
  DEV_MEMBER void begin(const MixerArgs &p) {
    const float *from = BACK ? p.n.d_final_vector : p.n.initial_vector;
#pragma unroll
    for (int i = 0; i < STEPS; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int k = channel(i, h);
        z[i][h] = from && k < p.keys ? load_two(from, (long long)blockIdx.y * p.keys + k)
                                     : two{0.0f, 0.0f};
      }
  }
  /// z for the gradient, and at the end.
  DEV_MEMBER void keep(float *to, long long at, int keys) const {
    // Four lanes of a warp in the middle: the first ones write amounts.
    if (!to || blockIdx.x || (threadIdx.x & ~3u) != blockDim.x / 2) return;
#pragma unroll
    for (int i = 0; i < STEPS; i++)
#pragma unroll
      for (int h = 0; h < 2; h++)
        if (channel(i, h) < keys) store_two(to, at + channel(i, h), z[i][h].x, z[i][h].y);
  }
  /// Makes the columns: bf16 of z in even ones, what that leaves in odd ones.
  DEV_MEMBER void split() {
#pragma unroll
    for (int i = 0; i < STEPS; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const u32 high = pack2(z[i][h].x, z[i][h].y);
        column[BACK ? 0 : i][h] =
            threadIdx.x & 4 ? pack2(z[i][h].x - low_of(high), z[i][h].y - high_of(high)) : high;
      }
  }
  /// `d`: the chunk's decay of each channel, `added`: what it adds.
  DEV_MEMBER void advance(const float *added, const float *d) {
#pragma unroll
    for (int i = 0; i < STEPS; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const two f = *(const two *)(d + channel(i, h)), x = *(const two *)(added + channel(i, h));
        z[i][h] = {f.x * z[i][h].x + x.x, f.y * z[i][h].y + x.y};
      }
  }
};

/// Where a thread of a walk writes the a of its rows, [T, H]; null where others do. In a team every
/// member has rows of its own.
DEV float *amounts_of(const MixerArgs &p) {
  const bool is_writer = threadIdx.x < (blockDim.x == 128 ? 32 : 128);
  if (!p.n.amounts || blockIdx.x || !is_writer || threadIdx.x & 3) return nullptr;
  return p.n.amounts + (long long)(blockIdx.y / p.heads) * p.tokens * p.heads +
         blockIdx.y % p.heads;
}
/// Divides one row of a walk's outputs, h of its two, by what the product of Q̃ and z gave. `sums`: the
/// chunk's row_sums.
DEV void divide(const MixerArgs &p, float (&o)[2][4], const float (&amount)[4], const float *sums,
                float *amounts, int chunk, int row, int h) {
  const float a = amount[h * 2] + amount[h * 2 + 1] + sums[row];
  const float f = reciprocal(Divisor(p.n, a, sums[row + 64]).value);
#pragma unroll
  for (int n = 0; n < 2; n++) {
    o[n][h * 2] *= f;
    o[n][h * 2 + 1] *= f;
  }
  const int t = chunk * CHUNK + row;
  if (amounts && t < p.tokens) amounts[(long long)t * p.heads] = a;
}

/// Grid B·H, 1024 threads: m at the chunks' starts and after the last token. Reads gate, input gate,
/// reset, initial_max; writes stabilizers, and final_max where given.
DEV void stabilize(const MixerArgs &p) {
  const int lane = threadIdx.x & 31, row = blockIdx.x;
  two *pairs = (two *)p.n.stabilizers + (long long)row * (p.chunks + 1);
  for (int chunk = threadIdx.x >> 5; chunk < p.chunks; chunk += 32) {
    GatePair x;
    x.fetch(p, row / p.heads, row % p.heads, chunk * CHUNK);
    x.open(p, chunk * CHUNK);
    x.scan_stabilizer();
    if (lane == 31) pairs[chunk] = {x.rise[1], x.top[1]};
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  float m = p.n.initial_max ? p.n.initial_max[row] * 1.4426950408889634f : 0.0f;
  for (int first = 0; first <= p.chunks; first += 32) {
    const int chunk = first + lane;
    two x = chunk < p.chunks ? pairs[chunk] : two{0.0f, -1e30f};
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const float rise = __shfl_up_sync(0xffffffffu, x.x, d),
                  top = __shfl_up_sync(0xffffffffu, x.y, d);
      if (lane >= d) {
        x.y = larger(top + x.x, x.y);
        x.x += rise;
      }
    }
    const float after = larger(m + x.x, x.y);
    const float before = __shfl_up_sync(0xffffffffu, after, 1);
    if (chunk <= p.chunks) pairs[chunk].x = lane ? before : m;
    m = __shfl_sync(0xffffffffu, after, 31);
  }
  if (lane == 0 && p.n.final_max) p.n.final_max[row] = m * 0.6931471805599453f;
}

/// Eight elements, a multiple of eight on.
DEV void load8(float (&x)[8], const bf16 *p, long long i) {
  const uint4 v = *(const uint4 *)(p + i);
  const u32 part[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int j = 0; j < 4; j++) {
    x[j * 2] = low_of(part[j]);
    x[j * 2 + 1] = high_of(part[j]);
  }
}
DEV void load8(float (&x)[8], const float *p, long long i) {
#pragma unroll
  for (int j = 0; j < 8; j++) x[j] = p[i + j];
}
DEV void store8(bf16 *p, long long i, const float (&x)[8]) {
  *(uint4 *)(p + i) = {pack2(x[0], x[1]), pack2(x[2], x[3]), pack2(x[4], x[5]), pack2(x[6], x[7])};
}
DEV void store8(float *p, long long i, const float (&x)[8]) {
#pragma unroll
  for (int j = 0; j < 8; j++) p[i + j] = x[j];
}

/// Grid (N, B·H), 512 threads, (64 + 1024) · 4 bytes of shared memory: dn, da and Q̃ᵀ da of a chunk.
/// Reads y, dy, amounts, row_sums (of which e^−m), records.
template <int K, typename E>
DEV void normalize_back(const MixerArgs &p) {
  typedef Record<LINEAR, K> R;
  constexpr int PAIRS = K / 2, GROUPS = 512 / PAIRS;
  SHARED(memory);
  float *da = (float *)memory, *share = da + 64;
  const int batch = blockIdx.y / p.heads, head = blockIdx.y % p.heads, start = blockIdx.x * CHUNK;
  const long long place = (long long)blockIdx.y * p.chunks + blockIdx.x;
  const int rows = p.tokens - start < CHUNK ? p.tokens - start : CHUNK;
  const E *y = (const E *)p.y, *dy = (const E *)p.dy;
  E *dn = (E *)p.n.dn;
  // Q̃ is on its way while rows are summed.
  const int pair = threadIdx.x % PAIRS, group = threadIdx.x / PAIRS;
  const u16 *q = (const u16 *)(p.records + place * R::bytes) + R::Q;
  u32 queries[64 / GROUPS];
#pragma unroll
  for (int i = 0; i < 64 / GROUPS; i++)
    queries[i] = *(const u32 *)(q + at<K>(i * GROUPS + group, pair * 2));
  {
    const int t = threadIdx.x >> 3, lane = threadIdx.x & 7;  // eight lanes a token
    const bool is_inside = t < rows;
    const long long token = (long long)batch * p.tokens + start + (is_inside ? t : 0);
    const long long at = token * p.heads + head, from = at * p.values;
    const float amount = p.n.amounts[at];
    const float bound = p.n.divisor == 3 ? p.n.row_sums[place * 128 + 64 + t] : 0.0f;
    float sum = 0.0f;
    for (int v = lane * 8; v < p.values; v += 64) {
      float a[8], b[8];
      load8(a, y, from + v);
      load8(b, dy, from + v);
#pragma unroll
      for (int i = 0; i < 8; i++) sum += a[i] * b[i];
    }
#pragma unroll
    for (int s = 1; s < 8; s *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, s);
    const Divisor d(p.n, amount, bound);
    const float f = reciprocal(d.value), slope = is_inside ? -sum * f * d.slope : 0.0f;
    if (lane == 0) {
      da[t] = slope;
      if (is_inside) p.n.d_amounts[at] = slope;
    }
    if (is_inside)
      for (int v = lane * 8; v < p.values; v += 64) {
        float b[8];
        load8(b, dy, from + v);
#pragma unroll
        for (int i = 0; i < 8; i++) b[i] *= f;
        store8(dn, from + v, b);
      }
  }
  __syncthreads();
  two sum = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < 64 / GROUPS; i++) {
    sum.x += low_of(queries[i]) * da[i * GROUPS + group];
    sum.y += high_of(queries[i]) * da[i * GROUPS + group];
  }
  *(two *)(share + group * K + pair * 2) = sum;
  __syncthreads();
  if (threadIdx.x < K) {
    float all = 0.0f;
#pragma unroll
    for (int i = 0; i < GROUPS; i++) all += share[i * K + threadIdx.x];
    p.n.query_sums[place * K + threadIdx.x] = all;
  }
}
