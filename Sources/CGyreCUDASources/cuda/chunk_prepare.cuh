// prepare: everything of a chunk that does not depend on the state.
//
//     P_ij = s q_i·(e^{c_i − c_j} k_j), j ≤ i           (and A likewise, strictly lower)
//     delta rule:        T = (I + βA)⁻¹                W = −K̄            Q̃ = Q̄
//                        K̃ = β Tᵀ K̂           P̃ = P T β
//     generalised rule:  T = (I − A_ab)⁻¹, M = T A_ak  W = T Ā           Q̃ = Q̄ + A_qb W
//                        K̃ = K̂ + Mᵀ B̂         P̃ = A_qk + A_qb M
//
// with Q̄, K̄, Ā decayed from the chunk's start and K̂, B̂ to its end. T comes from 16-row blocks
// inverted by substitution in float32 and merged 16 → 32 → 64 by T₂₁ = −T₂₂ A₂₁ T₁₁.
#pragma once
#include "chunk_normalizer.cuh"
#include "chunk_solve.cuh"

/// Products of the rows of X with the columns of X, both sets, over 64 channels.
template <int RULE, int W>
DEV void gram(float (&d)[RULE == LINEAR ? 1
                         : RULE == BETA ? 2
                                        : 4][2][4],
              const u16 *x, const u16 *x2, int row, const u16 *c, const u16 *c2, int column) {
#pragma unroll
  for (int s = 0; s < 4; s++) {
    u32 a[4], b[4], a2[4], b2[4];
    load_a<W>(a, x, row, s * 16);
    load_b<W>(b, c, column, s * 16);
    mma(d[0][0], a, b[0], b[1]);
    mma(d[0][1], a, b[2], b[3]);
    if (RULE != LINEAR) {
      load_a<W>(a2, x2, row, s * 16);
      mma(d[RULE == LINEAR ? 0 : 1][0], a2, b[0], b[1]);
      mma(d[RULE == LINEAR ? 0 : 1][1], a2, b[2], b[3]);
    }
    if (RULE == GENERAL) {
      load_b<W>(b2, c2, column, s * 16);
      mma(d[RULE == GENERAL ? 2 : 0][0], a, b2[0], b2[1]);
      mma(d[RULE == GENERAL ? 2 : 0][1], a, b2[2], b2[3]);
      mma(d[RULE == GENERAL ? 3 : 0][0], a2, b2[0], b2[1]);
      mma(d[RULE == GENERAL ? 3 : 0][1], a2, b2[2], b2[3]);
    }
  }
}

/// One warp's rows and columns at a level: later tokens as rows, decayed from the middle; earlier
/// ones as columns, decayed to the middle.
template <int RULE, int K>
struct Levels {
  static constexpr int grams = RULE == LINEAR ? 1 : RULE == BETA ? 2 : 4;
  const u16 *q, *k, *a, *b;  // raw rows in tiles of K columns
  int first, channel;        // the warp's first row, the thread's first channel
  u32 resets;

  DEV_MEMBER u32 erase(int i) const {
    if (RULE == BETA) return key(i);
    return resets >> i & 1 ? 0 : *(const u32 *)(a + at<K>(first + i, channel));
  }
  DEV_MEMBER u32 query(int i) const { return *(const u32 *)(q + at<K>(first + i, channel)); }
  DEV_MEMBER u32 key(int i) const { return *(const u32 *)(k + at<K>(first + i, channel)); }
  DEV_MEMBER u32 write(int i) const { return *(const u32 *)(b + at<K>(first + i, channel)); }

  /// Puts token i into row `row` of the level's tiles of 64 columns, as a row or as a column.
  DEV_MEMBER void put(u16 *x, u16 *x2, int row, int column, int i, bool is_row, two inclusive,
                      two exclusive) const {
    *(u32 *)(x + at<64>(row, column)) = scaled(is_row ? query(i) : key(i), inclusive);
    // Rows that are columns at this level are left as they are: what they give is never used.
    if (RULE == BETA && is_row) *(u32 *)(x2 + at<64>(row, column)) = scaled(key(i), inclusive);
    if (RULE == GENERAL)
      *(u32 *)(x2 + at<64>(row, column)) =
          is_row ? scaled(erase(i), exclusive) : scaled(write(i), inclusive);
  }

  template <int L>
  DEV_MEMBER void diagonal_level(float (&sum)[grams][2][4], u16 *x, u16 *x2,
                                 const two (&before)[16], const two (&after)[16]) const {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < 16; i++) {
      const two one = {1.0f, 1.0f};
      if (i & L)
        put(x, x2, i, lane * 2, i, true, before[i], i & (L - 1) ? before[i ? i - 1 : 0] : one);
      else
        put(x, x2, i, lane * 2, i, false, after[i], one);
    }
    __syncwarp();
    float d[grams][2][4];
#pragma unroll
    for (int m = 0; m < grams; m++) clear(d[m]);
    gram<RULE, 64>(d, x, x2, 0, x, x2, 0);
    __syncwarp();
#pragma unroll
    for (int m = 0; m < grams; m++)
#pragma unroll
      for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
          if (is_level<L>((lane >> 2) + (e >> 1) * 8, n * 8 + (lane & 3) * 2 + (e & 1)))
            sum[m][n][e] += d[m][n][e];
  }

  /// The products of each token with itself: no decay, so straight from the raw tiles.
  DEV_MEMBER void diagonal(float (&sum)[grams][2][4]) const {
    const int lane = threadIdx.x & 31, part = channel & ~63;
#pragma unroll
    for (int set = 0; set < (RULE == GENERAL ? 2 : 1); set++) {
      float d[2][4];
      clear(d);
#pragma unroll
      for (int s = 0; s < 4; s++) {
        u32 f[4], c[4];
        load_a<K>(f, q, first, part + s * 16);
        load_b<K>(c, set ? b : k, first, part + s * 16);
        mma(d[0], f, c[0], c[1]);
        mma(d[1], f, c[2], c[3]);
      }
      float (&to)[2][4] = sum[set ? grams / 2 : 0];
#pragma unroll
      for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
          if ((lane >> 2) + (e >> 1) * 8 == n * 8 + (lane & 3) * 2 + (e & 1)) to[n][e] += d[n][e];
    }
  }
};

/// prepare's products and decayed rows where one factor serves all channels; of the delta rule W and Q̄
/// go to the record.
template <int RULE, int K, bool COMPACT>
DEV void prepare_scalar(const MixerArgs &p, u16 *m, const ScalarDecays &decays, const float *beta,
                        float *diagonal, unsigned char *record) {
  typedef PrepareLayout<RULE, K, COMPACT> L;
  typedef Record<RULE, K> R;
  constexpr int grams = RULE == LINEAR ? 1 : 2;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = (lane & 3) * 2;
  float sum[grams][8][4];
#pragma unroll
  for (int i = 0; i < grams; i++) clear(sum[i]);
#pragma unroll
  for (int s = 0; s < K / 16; s++) {
    u32 a[4], a2[4], b[4];
    load_a<K>(a, m + L::Q, warp * 16, s * 16);
    if (RULE != LINEAR) load_a<K>(a2, m + L::H, warp * 16, s * 16);
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (j <= warp) {
        load_b<K>(b, m + L::H, j * 16, s * 16);
        mma(sum[0][j * 2], a, b[0], b[1]);
        mma(sum[0][j * 2 + 1], a, b[2], b[3]);
        if (RULE != LINEAR) {
          mma(sum[grams - 1][j * 2], a2, b[0], b[1]);
          mma(sum[grams - 1][j * 2 + 1], a2, b[2], b[3]);
        }
      }
  }
#pragma unroll
  for (int n = 0; n < 8; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int i = warp * 16 + g + (e >> 1) * 8, j = n * 8 + c + (e & 1);
      const float f = j <= i ? decays.between(i, j) : 0.0f;
      sum[0][n][e] *= f * p.scale;
      if (RULE != LINEAR) {
        const float x = j < i ? sum[grams - 1][n][e] * f * beta[i] : 0.0f;
        sum[grams - 1][n][e] = x;
        if (n / 2 == warp)
          diagonal[warp * 256 + (g + (e >> 1) * 8) * 16 + (n & 1) * 8 + c + (e & 1)] = x;
      }
    }
  store_tile<64>(m + L::P, warp * 16, 0, sum[0]);
  if (RULE != LINEAR) store_tile<64>(m + L::G, warp * 16, 0, sum[grams - 1]);
  __syncthreads();
  for (int i = threadIdx.x; i < 64 * K / 8; i += 128) {
    const int row = i / (K / 8);  // the pieces of a row stay in it
    uint4 *q = (uint4 *)(m + L::Q) + i, *k = (uint4 *)(m + L::H) + i;
    const float lead = decays.lead[row];
    uint4 *to = RULE == BETA ? (uint4 *)(record + R::Q * 2) + i : q;
    *to = scaled8(*q, p.scale * lead);
    const uint4 key = *k;
    if (RULE == BETA) ((uint4 *)(record + R::W * 2))[i] = scaled8(key, -lead);
    *k = scaled8(key, decays.tail[row]);
  }
  float *d = (float *)(record + R::D * 2);
  for (int k = threadIdx.x; k < K; k += 128) d[k] = decays.lead[63];
}

DEV_CONST bool is_compact(int rule, bool is_scalar) {
  return is_scalar && rule == BETA;
}

/// Chunk `chunk` of row `index` of B·H, 128 threads, PrepareLayout::bytes of shared memory. Reads q,
/// k, a, b, gate, beta, reset; writes records, and extras where given. SCALAR: gate kinds 0 to 2
/// only, and faster; without it any kind.
template <int RULE, int K, bool SCALAR, typename E>
DEV void prepare(const MixerArgs &p, int chunk, int index) {
  constexpr bool COMPACT = is_compact(RULE, SCALAR);
  typedef PrepareLayout<RULE, K, COMPACT> L;
  typedef Record<RULE, K> R;
  constexpr int grams = Levels<RULE, K>::grams;
  SHARED(memory);
  u16 *m = (u16 *)memory;
  float *diagonal = (float *)(m + L::diagonal), *total = (float *)(m + L::total);
  float *beta = (float *)(m + L::beta), *scalar = (float *)(m + L::scalar);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int batch = index / p.heads, head = index % p.heads;
  const long long place = (long long)index * p.chunks + chunk;
  const int start = chunk * CHUNK, first = start + warp * 16;
  const int key_head = head / (p.heads / p.key_heads);
  unsigned char *record = p.records + place * R::bytes;

  const int rows = p.tokens - start < CHUNK ? p.tokens - start : CHUNK;
  const long long token = (long long)batch * p.tokens + start;
  const long long key_row = (token * p.key_heads + key_head) * p.keys;
  const long long key_stride = (long long)p.key_heads * p.keys;
  GatePair gates;
  if (SCALAR && warp == 0) gates.fetch(p, batch, head, start);
  load_rows<K>(m + L::Q, (const E *)p.q, key_row, key_stride, rows, p.keys, 128);
  load_rows<K>(m + L::H, (const E *)p.k, key_row, key_stride, rows, p.keys, 128);
  if (RULE == GENERAL) {
    const long long row = (token * p.heads + head) * p.keys, stride = (long long)p.heads * p.keys;
    load_rows<K>(m + L::A, (const E *)p.a, row, stride, rows, p.keys, 128);
    load_rows<K>(m + L::B, (const E *)p.b, row, stride, rows, p.keys, 128);
  }
  copy_commit();
  if (RULE == BETA && threadIdx.x < CHUNK) {
    float x = 0.0f;
    if ((int)threadIdx.x < rows)
      x = load_any(p.beta, p.beta_is_float, (token + threadIdx.x) * p.heads + head);
    // A strength of 0 counts as 1e-18, so that what a token would have written can be recovered.
    beta[threadIdx.x] = x < 1e-18f && x > -1e-18f ? 1e-18f : x;
  }
  if (SCALAR) {
    ScalarDecays &decays = *(ScalarDecays *)total;
    if (warp == 0) decays.fill(p, gates, batch, head, start);
    copy_wait<0>();
    __syncthreads();
    if (p.normalize) {
      normalize_rows<K>(p, m + L::Q, m + L::H, place);
      __syncthreads();
    }
    prepare_scalar<RULE, K, COMPACT>(p, m, decays, beta, diagonal, record);
    __syncthreads();
    if (RULE == LINEAR && p.n.row_sums) sum_tiles<K>(p, m + L::P, m + L::H, diagonal, place);
    finish<RULE, K, COMPACT>(p, m, diagonal, beta, record, place);
    return;
  }
  load_scalar_decays(scalar, p, batch, head, start);
  const u32 resets = load_resets(p, batch, first);
  two before[16], after[16];
  // Gates of channels come straight from memory, so their loads overlap the tiles'.
  if (p.gate_kind == 3) load_decays(before, p, batch, head, first, lane * 2, resets, nullptr);
  copy_wait<0>();
  __syncthreads();
  if (p.normalize) {
    normalize_rows<K>(p, m + L::Q, m + L::H, place);
    __syncthreads();
  }

  float block[grams][2][4], near[grams][2][4], far[grams][2][4];
#pragma unroll
  for (int i = 0; i < grams; i++) {
    clear(block[i]);
    clear(near[i]);
    clear(far[i]);
  }
  const int far_row = 32 + (warp & 1) * 16, far_column = (warp >> 1) * 16;
  u16 *x = m + L::level, *x2 = x + 4096;
#pragma unroll 1
  for (int part = 0; part < K / 64; part++) {
    const int channel = part * 64 + lane * 2;
    Levels<RULE, K> levels = {m + L::Q, m + L::H, m + L::A, m + L::B, warp * 16, channel, resets};
    if (part || p.gate_kind != 3)
      load_decays(before, p, batch, head, first, channel, resets, scalar + warp * 16);
#pragma unroll
    for (int i = 0; i < 16; i++) after[i] = {1.0f, 1.0f};
    u16 *own = m + L::scratch + warp * L::sets * 1024, *own2 = own + 1024;
    levels.diagonal(block);
    levels.template diagonal_level<1>(block, own, own2, before, after);
    widen<1>(before, after);
    levels.template diagonal_level<2>(block, own, own2, before, after);
    widen<2>(before, after);
    levels.template diagonal_level<4>(block, own, own2, before, after);
    widen<4>(before, after);
    levels.template diagonal_level<8>(block, own, own2, before, after);
    widen<8>(before, after);

    const two one = {1.0f, 1.0f};
    *(two *)(total + warp * 64 + lane * 2) = before[15];
#pragma unroll
    for (int i = 0; i < 16; i++)
      levels.put(x, x2, warp * 16 + i, lane * 2, i, warp & 1, warp & 1 ? before[i] : after[i],
                 i ? before[i ? i - 1 : 0] : one);
    __syncthreads();
    two all[4];
#pragma unroll
    for (int i = 0; i < 4; i++) all[i] = *(const two *)(total + i * 64 + lane * 2);
    if (warp & 1) gram<RULE, 64>(near, x, x2, warp * 16, x, x2, warp * 16 - 16);
    __syncthreads();
    {
      const two outer = warp == 3 ? all[2] : warp == 0 ? all[1] : one;
#pragma unroll
      for (int i = 0; i < 16; i++)
        levels.put(x, x2, warp * 16 + i, lane * 2, i, warp >= 2,
                   times(warp >= 2 ? before[i] : after[i], outer),
                   times(i ? before[i ? i - 1 : 0] : one, outer));
    }
    __syncthreads();
    gram<RULE, 64>(far, x, x2, far_row, x, x2, far_column);
    __syncthreads();

    // The raw rows become the chunk's: each thread replaces what it alone reads.
    two lead = one, tail = one;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i < warp) lead = times(lead, all[i]);
      if (i > warp) tail = times(tail, all[i]);
    }
    if (warp == 0)
      *(two *)(record + R::D * 2 + channel * 4) =
          times(times(all[0], all[1]), times(all[2], all[3]));
#pragma unroll
    for (int i = 0; i < 16; i++) {
      const int place = at<K>(warp * 16 + i, channel);
      const two from_start = times(before[i], lead), to_end = times(after[i], tail);
      const u32 key = levels.key(i), query = levels.query(i);
      if (RULE == BETA) *(u32 *)(m + L::A + place) = scaled(key, times(from_start, {-1.0f, -1.0f}));
      if (RULE == GENERAL) {
        *(u32 *)(m + L::A + place) =
            scaled(levels.erase(i), times(i ? before[i ? i - 1 : 0] : one, lead));
        *(u32 *)(m + L::B + place) = scaled(levels.write(i), to_end);
      }
      *(u32 *)(m + L::Q + place) = scaled(query, times(from_start, {p.scale, p.scale}));
      *(u32 *)(m + L::H + place) = scaled(key, to_end);
    }
  }
  __syncthreads();

  // The products into tiles. P and A_qb carry the scale, A of the delta rule β, A_ab a minus.
  const int g = lane >> 2, c = (lane & 3) * 2;
#pragma unroll
  for (int i = 0; i < grams; i++) {
    const bool is_query = RULE == GENERAL ? i == 0 || i == 2 : i == 0;
    u16 *to = m + (i == 0 ? R::P : RULE == BETA ? L::G : i == 1 ? L::AK : i == 2 ? L::QB : L::G);
    const bool is_solved = RULE == BETA ? i == 1 : i == 3;
#pragma unroll
    for (int where = 0; where < 3; where++) {
      float (&d)[2][4] = where == 0 ? block[i] : where == 1 ? near[i] : far[i];
      const int row = where == 2 ? far_row : warp * 16;
      const int column = where == 0 ? row : where == 1 ? warp * 16 - 16 : far_column;
      if (where == 1 && !(warp & 1)) continue;
#pragma unroll
      for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const float strength = RULE == BETA ? beta[row + g + (e >> 1) * 8] : -1.0f;
          d[n][e] *= is_query ? p.scale : is_solved ? strength : 1.0f;
          if (is_solved && where == 0)
            diagonal[warp * 256 + (g + (e >> 1) * 8) * 16 + n * 8 + c + (e & 1)] = d[n][e];
        }
      store_tile<64>(to, row, column, d);
    }
    // Blocks above the diagonal.
    for (int z = lane; z < 16 * 32; z += 32)
      if ((z & 31) * 2 >= warp * 16 + 16)
        *(u32 *)(to + at<64>(warp * 16 + (z >> 5), (z & 31) * 2)) = 0;
  }
  __syncthreads();

  finish<RULE, K, COMPACT>(p, m, diagonal, beta, record, place);
}
