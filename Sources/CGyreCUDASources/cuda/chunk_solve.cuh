// The second half of prepare: the triangular inverse, what follows from it, and the record.
#pragma once
#include "chunk_common.cuh"

/// Shared memory of prepare, in 16-bit elements; the record's tiles come first. COMPACT, of the delta
/// rule: W and Q̄ go to the record at once, and what comes late takes their place, for more blocks of
/// threads on a multiprocessor.
template <int RULE, int K, bool COMPACT>
struct PrepareLayout {
  typedef Record<RULE, K> R;
  static constexpr int sets = RULE == LINEAR ? 1 : 2;
  static constexpr int record_tiles = R::D;
  static constexpr int P = 0, Q = COMPACT ? 4096 : R::Q, B = R::B, W = R::W;
  // Level tiles of 64 tokens: over K̃ and W, which come later.
  static constexpr int level = RULE == LINEAR ? record_tiles : R::KT;
  static constexpr int after_level =
      COMPACT ? Q + 64 * K : record_tiles + (RULE == LINEAR ? 4096 : 0);
  static constexpr int A = RULE == BETA ? W : after_level;  // Ā, or −K̄
  static constexpr int H = RULE == LINEAR ? R::KT : RULE == BETA ? after_level : A + 64 * K;  // K̂
  static constexpr int G =
      after_level + (RULE == LINEAR ? 0 : RULE == BETA ? 64 * K : 2 * 64 * K);
  static constexpr int after_g = G + (RULE == LINEAR ? 0 : 4096);
  static constexpr int T = COMPACT ? Q : after_g, KT = COMPACT ? Q : R::KT;
  static constexpr int QB = after_g + (RULE == LINEAR || COMPACT ? 0 : 4096);
  static constexpr int AK = QB + (RULE == GENERAL ? 4096 : 0);
  static constexpr int end = AK + (RULE == GENERAL ? 4096 : 0);
  static constexpr int scratch = RULE == LINEAR ? P : G;  // level tiles of one warp's 16
  static constexpr int diagonal = end;                    // float [4][256]
  static constexpr int total = diagonal + 2048;           // float [4][64], or ScalarDecays
  static constexpr int beta = total + 640;                // float [64]
  static constexpr int scalar = beta + 128;               // float [64]
  static constexpr int bytes = (scalar + 128) * 2;
};

/// T = (I + A)⁻¹ of a 64×64 strictly lower A: `diagonal` holds its 16×16 diagonal blocks in
/// float32, `stride` apart, `a` the blocks below them. `t` must be free but for diagonal blocks in a
/// warp's own rows; its blocks above the diagonal become 0. The first four of all warps.
DEV void invert(u16 *t, const float *diagonal, int stride, const u16 *a) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, column = lane & 15;
  if (warp < 4) {
    float x[16];
    const float *block = diagonal + warp * stride;
#pragma unroll
    for (int i = 0; i < 16; i++) {
      float s = i == column ? 1.0f : 0.0f;
#pragma unroll
      for (int l = 0; l < i; l++) s -= block[i * 16 + l] * x[l];
      x[i] = s;
    }
    __syncwarp();
    if (lane < 16)
#pragma unroll
      for (int i = 0; i < 16; i++) t[at<64>(warp * 16 + i, warp * 16 + column)] = bits_of(x[i]);
    for (int i = lane; i < 16 * 32; i += 32) {
      const int c = (i & 31) * 2;
      if (c >= warp * 16 + 16) *(u32 *)(t + at<64>(warp * 16 + (i >> 5), c)) = 0;
    }
  }
  __syncthreads();
  if (warp < 2) {
    const int low = warp * 32 + 16, high = warp * 32;
    u32 f[4], c[4];
    float y[2][4], z[2][4];
    clear(y);
    clear(z);
    load_a<64>(f, t, low, low);
    load_b_t<64>(c, a, high, low);
    mma(y[0], f, c[0], c[1]);
    mma(y[1], f, c[2], c[3]);
    as_a(f, y[0], y[1]);
    load_b_t<64>(c, t, high, high);
    mma(z[0], f, c[0], c[1]);
    mma(z[1], f, c[2], c[3]);
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) z[n][e] = -z[n][e];
    store_tile<64>(t, low, high, z);
  }
  __syncthreads();
  if (warp < 2) {
    const int row = 32 + warp * 16;
    u32 f[4], c[4];
    float y[4][4], z[4][4];
    clear(y);
    clear(z);
#pragma unroll
    for (int s = 0; s < 2; s++) {
      load_a<64>(f, t, row, 32 + s * 16);
#pragma unroll
      for (int n = 0; n < 2; n++) {
        load_b_t<64>(c, a, n * 16, 32 + s * 16);
        mma(y[n * 2], f, c[0], c[1]);
        mma(y[n * 2 + 1], f, c[2], c[3]);
      }
    }
#pragma unroll
    for (int s = 0; s < 2; s++) {
      as_a(f, y[s * 2], y[s * 2 + 1]);
#pragma unroll
      for (int n = 0; n < 2; n++) {
        load_b_t<64>(c, t, n * 16, s * 16);
        mma(z[n * 2], f, c[0], c[1]);
        mma(z[n * 2 + 1], f, c[2], c[3]);
      }
    }
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) z[n][e] = -z[n][e];
    store_tile<64>(t, row, 0, z);
  }
  __syncthreads();
}

/// The triangular inverse, what follows from it, and the record.
template <int RULE, int K, bool COMPACT>
DEV void finish(const MixerArgs &p, u16 *m, const float *diagonal, const float *beta,
                unsigned char *record, long long place) {
  typedef PrepareLayout<RULE, K, COMPACT> L;
  typedef Record<RULE, K> R;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = (lane & 3) * 2;
  if (RULE != LINEAR) {
    u16 *t = m + L::T;
    invert(t, diagonal, 256, m + L::G);
    // Of T the rows, or of the delta rule the columns.
    u32 of_t[4][4], rows_of_p[4][4];
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (j <= warp) {
        if (RULE == GENERAL) load_a<64>(of_t[j], t, warp * 16, j * 16);
        load_a<64>(rows_of_p[j], m + (RULE == BETA ? R::P : L::QB), warp * 16, j * 16);
      }
    if (RULE == GENERAL) {
      // M takes the place of A_ab.
      float d[8][4];
      clear(d);
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j <= warp)
#pragma unroll
          for (int n = 0; n <= j; n++) {
            u32 b[4];
            load_b_t<64>(b, m + L::AK, n * 16, j * 16);
            mma(d[n * 2], of_t[j], b[0], b[1]);
            mma(d[n * 2 + 1], of_t[j], b[2], b[3]);
          }
      store_tile<64>(m + L::G, warp * 16, 0, d);
#pragma unroll 1
      for (int part = 0; part < K / 64; part++) {
        clear(d);
#pragma unroll
        for (int j = 0; j < 4; j++)
          if (j <= warp)
#pragma unroll
            for (int n = 0; n < 4; n++) {
              u32 b[4];
              load_b_t<K>(b, m + L::A, part * 64 + n * 16, j * 16);
              mma(d[n * 2], of_t[j], b[0], b[1]);
              mma(d[n * 2 + 1], of_t[j], b[2], b[3]);
            }
        store_tile<K>(m + L::W, warp * 16, part * 64, d);
      }
      __syncthreads();
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j >= warp) load_a_t<64>(of_t[j], t, warp * 16, j * 16);
    }
    // P̃, over P: no other warp reads these rows.
    {
      float d[8][4];
      clear(d);
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j <= warp)
#pragma unroll
          for (int n = 0; n <= j; n++) {
            u32 b[4];
            load_b_t<64>(b, m + (RULE == BETA ? L::T : L::G), n * 16, j * 16);
            mma(d[n * 2], rows_of_p[j], b[0], b[1]);
            mma(d[n * 2 + 1], rows_of_p[j], b[2], b[3]);
          }
#pragma unroll
      for (int n = 0; n < 8; n++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          if (RULE == BETA) {
            d[n][h * 2] *= beta[n * 8 + c];
            d[n][h * 2 + 1] *= beta[n * 8 + c + 1];
          } else {
            const u32 old = *(const u32 *)(m + L::P + at<64>(warp * 16 + g + h * 8, n * 8 + c));
            d[n][h * 2] += low_of(old);
            d[n][h * 2 + 1] += high_of(old);
          }
        }
      store_tile<64>(m + L::P, warp * 16, 0, d);
    }
#pragma unroll 1
    for (int part = 0; RULE == GENERAL && part < K / 64; part++) {
      float d[8][4];
#pragma unroll
      for (int n = 0; n < 8; n++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const u32 old =
              *(const u32 *)(m + L::Q + at<K>(warp * 16 + g + h * 8, part * 64 + n * 8 + c));
          d[n][h * 2] = low_of(old);
          d[n][h * 2 + 1] = high_of(old);
        }
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j <= warp)
#pragma unroll
          for (int n = 0; n < 4; n++) {
            u32 b[4];
            load_b_t<K>(b, m + L::W, part * 64 + n * 16, j * 16);
            mma(d[n * 2], rows_of_p[j], b[0], b[1]);
            mma(d[n * 2 + 1], rows_of_p[j], b[2], b[3]);
          }
      store_tile<K>(m + L::Q, warp * 16, part * 64, d);
    }
    const auto keep = [&] {
      if (!p.extras) return;
      uint4 *to = (uint4 *)(p.extras + place * R::extra);
      for (int i = threadIdx.x; i < 512; i += 128) {
        to[i] = *(const uint4 *)(m + L::T + i * 8);
        if (RULE == GENERAL) {
          to[512 + i] = *(const uint4 *)(m + L::G + i * 8);
          to[1024 + i] = *(const uint4 *)(m + L::QB + i * 8);
        }
      }
    };
    if (RULE == BETA) keep();
    if (COMPACT) __syncthreads();  // K̃ takes T's place
    // K̃: columns of T (or M) from this block's rows on.
#pragma unroll 1
    for (int part = 0; part < K / 64; part++) {
      float d[8][4];
      clear(d);
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j >= warp) {
          u32 own[4];
          if (RULE == GENERAL) load_a_t<64>(own, m + L::G, warp * 16, j * 16);
          const u32(&a)[4] = RULE == BETA ? of_t[j] : own;
#pragma unroll
          for (int n = 0; n < 4; n++) {
            u32 b[4];
            load_b_t<K>(b, m + (RULE == BETA ? L::H : L::B), part * 64 + n * 16, j * 16);
            mma(d[n * 2], a, b[0], b[1]);
            mma(d[n * 2 + 1], a, b[2], b[3]);
          }
        }
#pragma unroll
      for (int n = 0; n < 8; n++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const int row = warp * 16 + g + h * 8;
          if (RULE == BETA) {
            d[n][h * 2] *= beta[row];
            d[n][h * 2 + 1] *= beta[row];
          } else {
            const u32 old = *(const u32 *)(m + L::H + at<K>(row, part * 64 + n * 8 + c));
            d[n][h * 2] += low_of(old);
            d[n][h * 2 + 1] += high_of(old);
          }
        }
      store_tile<K>(m + L::KT, warp * 16, part * 64, d);
    }
    __syncthreads();
    if (RULE == GENERAL) keep();
  }
  const auto copy = [&](int to, int from, int count) {
    for (int i = threadIdx.x * 8; i < count; i += 128 * 8)
      *(uint4 *)(record + (to + i) * 2) = *(const uint4 *)(m + from + i);
  };
  if (COMPACT) {
    copy(R::P, L::P, 4096);
    copy(R::KT, L::KT, 64 * K);
  } else {
    copy(0, 0, R::D);
  }
}
