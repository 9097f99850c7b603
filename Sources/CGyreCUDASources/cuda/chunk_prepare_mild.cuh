// prepare for mild chunks (chunk_mild.cuh) with decays of channels: the tiles become rows and
// columns from the chunk's start in place, one level of products in place of six.
#pragma once
#include "chunk_mild.cuh"
#include "chunk_solve.cuh"

/// Shared memory in 16-bit elements.
template <int RULE, int K>
struct MildPrepareLayout {
  static constexpr int full = 64 * K, small = 4096;
  static constexpr int q = 0, k = full;                            // rows q e^c, columns k e^−c
  static constexpr int a = k + full;                               // rows that erase; W
  static constexpr int b = a + (RULE == LINEAR ? 0 : full);        // columns that write
  static constexpr int p = b + (RULE == GENERAL ? full : 0);
  static constexpr int g = p + small, t = g + (RULE == LINEAR ? 0 : small);
  static constexpr int qb = t + (RULE == LINEAR ? 0 : small);
  static constexpr int ak = qb + (RULE == GENERAL ? small : 0);
  static constexpr int kt = RULE == BETA ? q : k;
  static constexpr int end = ak + (RULE == GENERAL ? small : 0);
  static constexpr int totals = end;                               // float [K / 64][4][64]
  static constexpr int beta = totals + 8 * K;                      // float [64]
  static constexpr int tail = beta + 128;                          // float [K]
  static constexpr int bytes = (tail + 2 * K) * 2;
};

/// Grid (N, B·H), 256 threads. Reads what prepare reads; a chunk that is not mild gets 0 in `mild`
/// and nothing else, the others 1 and what prepare writes.
template <int RULE, int K, typename E>
DEV void mild_prepare(const MixerArgs &p) {
  typedef MildPrepareLayout<RULE, K> L;
  typedef Record<RULE, K> R;
  SHARED(memory);
  u16 *m = (u16 *)memory;
  float *totals = (float *)(m + L::totals), *beta = (float *)(m + L::beta);
  float *tails = (float *)(m + L::tail);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = (lane & 3) * 2;
  const int w = warp & 3, half = warp >> 2, h0 = half * 32;  // 16 rows, 32 of a part's columns
  const int chunk = blockIdx.x, batch = blockIdx.y / p.heads, head = blockIdx.y % p.heads;
  const int start = chunk * CHUNK;
  const int key_head = head / (p.heads / p.key_heads);
  const long long place = (long long)blockIdx.y * p.chunks + chunk;
  unsigned char *record = p.records + place * R::bytes;
  const int rows = p.tokens - start < CHUNK ? p.tokens - start : CHUNK;
  const long long token = (long long)batch * p.tokens + start;
  const long long key_row = (token * p.key_heads + key_head) * p.keys;
  const long long key_stride = (long long)p.key_heads * p.keys;
  load_rows<K>(m + L::q, (const E *)p.q, key_row, key_stride, rows, p.keys, 256);
  load_rows<K>(m + L::k, (const E *)p.k, key_row, key_stride, rows, p.keys, 256);
  if (RULE == GENERAL) {
    const long long row = (token * p.heads + head) * p.keys, stride = (long long)p.heads * p.keys;
    load_rows<K>(m + L::a, (const E *)p.a, row, stride, rows, p.keys, 256);
    load_rows<K>(m + L::b, (const E *)p.b, row, stride, rows, p.keys, 256);
  }
  copy_commit();
  if (RULE == BETA && threadIdx.x < CHUNK) {
    float x = 0.0f;
    if ((int)threadIdx.x < rows)
      x = load_any(p.beta, p.beta_is_float, (token + threadIdx.x) * p.heads + head);
    beta[threadIdx.x] = x < 1e-18f && x > -1e-18f ? 1e-18f : x;
  }
  bool does = true;
#pragma unroll 1
  for (int part = 0; part < K / 64; part++) {
    MildDecays<4> decays;
    float *sums = totals + part * 256;
    decays.load(p, batch, head, start + w * 16, part * 64 + h0, sums + w * 64 - part * 64);
    copy_wait<0>();
    __syncthreads();
    if (!part && p.normalize) {
      normalize_rows<K>(p, m + L::q, m + L::k, place);
      __syncthreads();
    }
    does = does && is_mild(p, sums, batch, start);
    if (!does) break;
    decays.place(sums - part * 64, w, part * 64 + h0, false);
    if (threadIdx.x < 64) {
      const float *x = sums + threadIdx.x;
      tails[part * 64 + threadIdx.x] = exp2_of(x[0] + x[64] + x[128] + x[192]);
    }
#pragma unroll
    for (int n = 0; n < 4; n++) {
      const int first = part * 64 + h0 + n * 8;
      float own[4];
      if (RULE == GENERAL) MildDecays<4>::own(own, p, batch, head, start + w * 16, first);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int row = w * 16 + g + h * 8, to = at<K>(row, first + c);
        const float c0 = decays.c[n][h * 2], c1 = decays.c[n][h * 2 + 1];
        const two f = {exp2_of(c0), exp2_of(c1)}, column = {exp2_of(-c0), exp2_of(-c1)};
        u32 *q = (u32 *)(m + L::q + to), *k = (u32 *)(m + L::k + to);
        *q = scaled(*q, times(f, {p.scale, p.scale}));
        const u32 key = *k;
        *k = scaled(key, column);
        if (RULE == BETA) *(u32 *)(m + L::a + to) = scaled(key, times(f, {-1.0f, -1.0f}));
        if (RULE == GENERAL) {
          u32 *a = (u32 *)(m + L::a + to), *b = (u32 *)(m + L::b + to);
          *a = scaled(*a, {exp2_of(c0 - own[h * 2]), exp2_of(c1 - own[h * 2 + 1])});
          *b = scaled(*b, column);
        }
      }
    }
  }
  if (threadIdx.x == 0) p.mild[place] = does;
  if (!does) return;
  __syncthreads();

  // Masked products: those of one kind of rows with both kinds of columns at a time.
  float *diagonal = (float *)(m + L::t);
#pragma unroll
  for (int kind = 0; kind < (RULE == LINEAR ? 1 : 2); kind++) {
    float d[4][4], d2[RULE == GENERAL ? 4 : 1][4];
    clear(d);
    clear(d2);
#pragma unroll
    for (int s = 0; s < K / 16; s++) {
      u32 x[4], y[4];
      load_a<K>(x, m + (kind ? L::a : L::q), w * 16, s * 16);
#pragma unroll
      for (int j = 0; j < 2; j++)
        if (half * 2 + j <= w) {
          load_b<K>(y, m + L::k, h0 + j * 16, s * 16);
          mma(d[j * 2], x, y[0], y[1]);
          mma(d[j * 2 + 1], x, y[2], y[3]);
          if (RULE == GENERAL) {
            load_b<K>(y, m + L::b, h0 + j * 16, s * 16);
            mma(d2[RULE == GENERAL ? j * 2 : 0], x, y[0], y[1]);
            mma(d2[RULE == GENERAL ? j * 2 + 1 : 0], x, y[2], y[3]);
          }
        }
    }
    // A, the rows' products that are solved for, has a minus: of the delta rule in its rows, β not.
    const auto masked = [&](float (&x)[4][4], int to, bool is_solved) {
#pragma unroll
      for (int n = 0; n < 4; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int i = w * 16 + g + (e >> 1) * 8, j = h0 + n * 8 + c + (e & 1);
          const float factor = !is_solved ? 1.0f : RULE == BETA ? -beta[i] : -1.0f;
          x[n][e] = j < i || (j == i && !kind) ? x[n][e] * factor : 0.0f;
          if (is_solved && half * 2 + n / 2 == w)
            diagonal[w * 512 + (g + (e >> 1) * 8) * 16 + (n & 1) * 8 + c + (e & 1)] = x[n][e];
        }
      store_tile<64>(m + to, w * 16, h0, x);
    };
    masked(d, !kind ? L::p : RULE == BETA ? L::g : L::ak, RULE == BETA && kind);
    if constexpr (RULE == GENERAL) masked(d2, kind ? L::g : L::qb, kind);
  }
  __syncthreads();
  const auto copy = [&](int to, int from, int count) {
    for (int i = threadIdx.x * 8; i < count; i += 256 * 8)
      *(uint4 *)(record + (to + i) * 2) = *(const uint4 *)(m + from + i);
  };
  if (RULE == BETA) {
    copy(R::Q, L::q, 64 * K);
    copy(R::W, L::a, 64 * K);
  }
  if (RULE != LINEAR) {
    invert(m + L::t, diagonal, 512, m + L::g);
    u32 of_t[4][4], of_p[4][4];
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (j <= w) {
        load_a<64>(of_t[j], m + L::t, w * 16, j * 16);
        load_a<64>(of_p[j], m + (RULE == BETA ? L::p : L::qb), w * 16, j * 16);
      }
    // rows × the columns of a tile, up to the warp's own block.
    const auto triangular = [&](float (&d)[4][4], const u32(&left)[4][4], int right) {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j <= w)
#pragma unroll
          for (int n = 0; n < 2; n++) {
            if (half * 2 + n > j) continue;
            u32 b[4];
            load_b_t<64>(b, m + right, h0 + n * 16, j * 16);
            mma(d[n * 2], left[j], b[0], b[1]);
            mma(d[n * 2 + 1], left[j], b[2], b[3]);
          }
    };
    const auto full = [&](float (&d)[4][4], const u32(&left)[4][4], int right, int first) {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j <= w)
#pragma unroll
          for (int n = 0; n < 2; n++) {
            u32 b[4];
            load_b_t<K>(b, m + right, first + n * 16, j * 16);
            mma(d[n * 2], left[j], b[0], b[1]);
            mma(d[n * 2 + 1], left[j], b[2], b[3]);
          }
    };
    float d[4][4];
    if (RULE == GENERAL) {  // M takes the place of A_ab
      clear(d);
      triangular(d, of_t, L::ak);
      store_tile<64>(m + L::g, w * 16, h0, d);
    }
#pragma unroll 1
    for (int part = 0; RULE == GENERAL && part < K / 64; part++) {
      clear(d);
      full(d, of_t, L::a, part * 64 + h0);
      __syncthreads();  // rows of `a` become W
      store_tile<K>(m + L::a, w * 16, part * 64 + h0, d);
    }
    if (RULE == GENERAL) __syncthreads();
    // P̃, over P: nobody reads it any more (BETA: in products; its rows are in registers).
    clear(d);
    triangular(d, of_p, RULE == BETA ? L::t : L::g);
    if (RULE == BETA) __syncthreads();
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        if (RULE == BETA) {
          d[n][h * 2] *= beta[h0 + n * 8 + c];
          d[n][h * 2 + 1] *= beta[h0 + n * 8 + c + 1];
        } else {
          const u32 old = *(const u32 *)(m + L::p + at<64>(w * 16 + g + h * 8, h0 + n * 8 + c));
          d[n][h * 2] += low_of(old);
          d[n][h * 2 + 1] += high_of(old);
        }
      }
    store_tile<64>(m + L::p, w * 16, h0, d);
#pragma unroll 1
    for (int part = 0; part < K / 64; part++) {
      const int first = part * 64 + h0;
      // Q̃ in place of q: a warp's own rows.
      if (RULE == GENERAL) {
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
          for (int h = 0; h < 2; h++) {
            const u32 old =
                *(const u32 *)(m + L::q + at<K>(w * 16 + g + h * 8, first + n * 8 + c));
            d[n][h * 2] = low_of(old);
            d[n][h * 2 + 1] = high_of(old);
          }
        full(d, of_p, L::a, first);
        store_tile<K>(m + L::q, w * 16, first, d);
      }
      // K̃: columns of T (or M) from this block's rows on; in place of keys where nobody else reads
      // these, or of q.
#pragma unroll
      for (int n = 0; n < 4; n++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const u32 old =
              *(const u32 *)(m + L::k + at<K>(w * 16 + g + h * 8, first + n * 8 + c));
          d[n][h * 2] = RULE == BETA ? 0.0f : low_of(old);
          d[n][h * 2 + 1] = RULE == BETA ? 0.0f : high_of(old);
        }
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j >= w) {
          u32 a[4];
          load_a_t<64>(a, m + (RULE == BETA ? L::t : L::g), w * 16, j * 16);
#pragma unroll
          for (int n = 0; n < 2; n++) {
            u32 b[4];
            load_b_t<K>(b, m + (RULE == BETA ? L::k : L::b), first + n * 16, j * 16);
            mma(d[n * 2], a, b[0], b[1]);
            mma(d[n * 2 + 1], a, b[2], b[3]);
          }
        }
#pragma unroll
      for (int n = 0; n < 4; n++) {
        const two f = *(const two *)(tails + first + n * 8 + c);
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const float strength = RULE == BETA ? beta[w * 16 + g + h * 8] : 1.0f;
          d[n][h * 2] *= f.x * strength;
          d[n][h * 2 + 1] *= f.y * strength;
        }
      }
      store_tile<K>(m + L::kt, w * 16, first, d);
    }
    __syncthreads();
    if (p.extras) {
      uint4 *to = (uint4 *)(p.extras + place * R::extra);
      for (int i = threadIdx.x; i < 512; i += 256) {
        to[i] = *(const uint4 *)(m + L::t + i * 8);
        if (RULE == GENERAL) {
          to[512 + i] = *(const uint4 *)(m + L::g + i * 8);
          to[1024 + i] = *(const uint4 *)(m + L::qb + i * 8);
        }
      }
    }
  }
  // Columns, decayed to the chunk's end on their way out.
  const auto copy_columns = [&](int to, int from) {
    for (int i = threadIdx.x * 8; i < 64 * K; i += 256 * 8) {
      const int column = i % K ^ (i / K & 7) << 3;
      const uint4 x = *(const uint4 *)(m + from + i);
      const two *f = (const two *)(tails + column);
      *(uint4 *)(record + (to + i) * 2) =
          uint4{scaled(x.x, f[0]), scaled(x.y, f[1]), scaled(x.z, f[2]), scaled(x.w, f[3])};
    }
  };
  copy(R::P, L::p, 4096);
  if (RULE != BETA) copy(R::Q, L::q, 64 * K);
  if (RULE == LINEAR) {
    copy_columns(R::KT, L::k);
  } else {
    if (RULE == GENERAL) copy(R::W, L::a, 64 * K);
    copy(R::KT, L::kt, 64 * K);
    if (RULE == GENERAL) copy_columns(R::B, L::b);
  }
  if (threadIdx.x < K) ((float *)(record + R::D * 2))[threadIdx.x] = tails[threadIdx.x];
}
