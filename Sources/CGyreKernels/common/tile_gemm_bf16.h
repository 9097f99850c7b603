// The products of tile_gemm.h with operands rounded to bfloat16 and sums in float32: at levels with
// bfloat16 instructions an engine's body calls these under the names of the float32 ones. alpha is applied
// to A before it is rounded. The level file includes immintrin.h.
//
// A is packed as rows of pairs along k, B as [pairs][64 columns]: what tile instructions and vdpbf16ps
// both read. A block of C is added to where it lies, so a product costs its packing and little else.
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "half_pairs.h"
#include "tile_configuration.h"
enum {
  CK_HALF_DEPTH = 256,            // of k, packed at a time
  CK_HALF_COLUMNS = 64,
  CK_HALF_ROWS = 64,
  CK_HALF_STEP = 32,              // of k, one tile
};

typedef struct {
  _Alignas(64) uint32_t a[CK_HALF_ROWS * CK_HALF_DEPTH / 2];
  _Alignas(64) uint32_t b[CK_HALF_COLUMNS * CK_HALF_DEPTH / 2];
} CK_NAME(ck_half_panels);

// Rows of pairs from `lines` x `length` numbers that lie along k; `units` words a row.
CK_TILE_INLINE void CK_NAME(ck_half_pack_rows)(uint32_t *out, long units, const float *in, long ld,
                                               long lines, long length, float alpha) {
  const __m512 scale = _mm512_set1_ps(alpha);
  for (long i = 0; i < lines; i++)
    for (long u = 0; u < units; u += 16)
      _mm512_store_si512(out + i * units + u,
                         CK_NAME(ck_half_row)(in + i * ld + 2 * u, length - 2 * u, scale));
}

// The same from numbers that lie across k: `length` lines of `lines` numbers.
CK_TILE_INLINE void CK_NAME(ck_half_pack_rows_across)(uint32_t *out, long units, const float *in,
                                                      long ld, long lines, long length, float alpha) {
  const __m512 scale = _mm512_set1_ps(alpha);
  for (long i = 0; i < lines; i += 16) {
    const __mmask16 lanes = CK_NAME(ck_half_lanes)(lines - i);
    for (long u = 0; u < units; u += 16) {
      __m512i v[16];
#pragma clang loop unroll(full)
      for (int w = 0; w < 16; w++) {
        const long k = 2 * (u + w);
        const float *row = in + k * ld + i;
        const __m512 first = _mm512_maskz_loadu_ps(k < length ? lanes : 0, row);
        const __m512 second = _mm512_maskz_loadu_ps(k + 1 < length ? lanes : 0, row + ld);
        v[w] = CK_NAME(ck_half_zip)(_mm512_mul_ps(first, scale), _mm512_mul_ps(second, scale));
      }
      CK_NAME(ck_half_transpose)(v);
#pragma clang loop unroll(full)
      for (int w = 0; w < 16; w++) _mm512_store_si512(out + (i + w) * units + u, v[w]);
    }
  }
}

// [pairs][64] of `columns` columns whose rows lie across k.
CK_TILE_INLINE void CK_NAME(ck_half_pack_columns)(uint32_t *out, long units, const float *in, long ld,
                                                  long columns, long length) {
  for (long u = 0; u < units; u++) {
    const float *row = in + 2 * u * ld;
    for (long j = 0; j < columns; j += 16) {
      const __mmask16 lanes = CK_NAME(ck_half_lanes)(columns - j);
      const __m512 first = _mm512_maskz_loadu_ps(2 * u < length ? lanes : 0, row + j);
      const __m512 second = _mm512_maskz_loadu_ps(2 * u + 1 < length ? lanes : 0, row + ld + j);
      _mm512_store_si512(out + u * CK_HALF_COLUMNS + j, CK_NAME(ck_half_zip)(first, second));
    }
  }
}

// The same where each column's numbers lie along k.
CK_TILE_INLINE void CK_NAME(ck_half_pack_columns_along)(uint32_t *out, long units, const float *in,
                                                        long ld, long columns, long length) {
  const __m512 one = _mm512_set1_ps(1.0f);
  for (long j = 0; j < columns; j += 16)
    for (long u = 0; u < units; u += 16) {
      __m512i v[16];
#pragma clang loop unroll(full)
      for (int c = 0; c < 16; c++)
        v[c] = CK_NAME(ck_half_row)(in + (j + c) * ld + 2 * u,
                                    j + c < columns ? length - 2 * u : 0, one);
      CK_NAME(ck_half_transpose)(v);
#pragma clang loop unroll(full)
      for (int c = 0; c < 16; c++) _mm512_store_si512(out + (u + c) * CK_HALF_COLUMNS + j, v[c]);
    }
}

#if CK_LEVEL_ID == 4
CK_TILE_INLINE void CK_NAME(ck_half_begin)(void) {
  const struct ck_tile_configuration shapes = ck_tile_shapes(0, 16);
  _tile_loadconfig(&shapes);
}
CK_TILE_INLINE void CK_NAME(ck_half_end)(void) { _tile_release(); }

// C[m, n] = a b + (adds ? C : 0), m <= 64 and n <= 64, in blocks of 32 x 32. A block that sticks out of
// C goes through `sums`.
static __attribute__((noinline, unused)) void CK_NAME(ck_half_multiply)(
    const uint32_t *a, const uint32_t *b, long m, long n, long units, float *c, long ldc, bool adds) {
  _Alignas(64) float sums[32 * 32];
  const long a_bytes = units * 4, b_bytes = CK_HALF_COLUMNS * 4;
  for (long i = 0; i < m; i += 32)
    for (long j = 0; j < n; j += 32) {
      const bool tall = m - i > 16, wide = n - j > 16;
      const bool whole = (m - i >= 32 || m - i == 16) && (n - j >= 32 || n - j == 16);
      float *out = whole ? c + i * ldc + j : sums;
      const long ld = whole ? ldc : 32, bytes = ld * 4;
      if (whole && adds) {
        _tile_loadd(0, out, bytes);
        if (wide) _tile_loadd(1, out + 16, bytes);
        if (tall) _tile_loadd(2, out + 16 * ld, bytes);
        if (tall && wide) _tile_loadd(3, out + 16 * ld + 16, bytes);
      } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      }
      const uint32_t *rows = a + i * units, *columns = b + j;
      for (long u = 0; u < units; u += 16) {
        _tile_loadd(4, rows + u, a_bytes);
        _tile_loadd(6, columns + u * CK_HALF_COLUMNS, b_bytes);
        _tile_dpbf16ps(0, 4, 6);
        if (wide) {
          _tile_loadd(7, columns + u * CK_HALF_COLUMNS + 16, b_bytes);
          _tile_dpbf16ps(1, 4, 7);
        }
        if (tall) {
          _tile_loadd(5, rows + 16 * units + u, a_bytes);
          _tile_dpbf16ps(2, 5, 6);
          if (wide) _tile_dpbf16ps(3, 5, 7);
        }
      }
      _tile_stored(0, out, bytes);
      if (wide) _tile_stored(1, out + 16, bytes);
      if (tall) _tile_stored(2, out + 16 * ld, bytes);
      if (tall && wide) _tile_stored(3, out + 16 * ld + 16, bytes);
      if (whole) continue;
      const long height = m - i < 32 ? m - i : 32, width = n - j < 32 ? n - j : 32;
      for (long r = 0; r < height; r++)
        for (long s = 0; s < width; s += 16) {
          const __mmask16 lanes = CK_NAME(ck_half_lanes)(width - s);
          float *target = c + (i + r) * ldc + j + s;
          __m512 x = _mm512_load_ps(sums + r * 32 + s);
          if (adds) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(lanes, target));
          _mm512_mask_storeu_ps(target, lanes, x);
        }
    }
}
#else
CK_TILE_INLINE void CK_NAME(ck_half_begin)(void) {}
CK_TILE_INLINE void CK_NAME(ck_half_end)(void) {}

CK_TILE_INLINE void CK_NAME(ck_half_block)(const int rows, const int vectors, const uint32_t *a,
                                           const uint32_t *b, long units, float *c, long ldc,
                                           __mmask16 last, bool adds) {
  __m512 sum[6][4];
#pragma clang loop unroll(full)
  for (int i = 0; i < rows; i++)
#pragma clang loop unroll(full)
    for (int j = 0; j < vectors; j++) sum[i][j] = _mm512_setzero_ps();
  for (long u = 0; u < units; u++) {
    __m512bh column[4];
#pragma clang loop unroll(full)
    for (int j = 0; j < vectors; j++)
      column[j] = (__m512bh)_mm512_load_si512(b + u * CK_HALF_COLUMNS + 16 * j);
#pragma clang loop unroll(full)
    for (int i = 0; i < rows; i++) {
      const __m512bh pair = (__m512bh)_mm512_set1_epi32((int)a[i * units + u]);
#pragma clang loop unroll(full)
      for (int j = 0; j < vectors; j++) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], pair, column[j]);
    }
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < rows; i++)
#pragma clang loop unroll(full)
    for (int j = 0; j < vectors; j++) {
      const __mmask16 lanes = j == vectors - 1 ? last : (__mmask16)0xFFFF;
      float *target = c + i * ldc + 16 * j;
      __m512 x = sum[i][j];
      if (adds) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(lanes, target));
      _mm512_mask_storeu_ps(target, lanes, x);
    }
}

CK_TILE_INLINE void CK_NAME(ck_half_panel)(const int vectors, const uint32_t *a, const uint32_t *b,
                                           long m, long units, float *c, long ldc, __mmask16 last,
                                           bool adds) {
  long i = 0;
  for (; i + 6 <= m; i += 6)
    CK_NAME(ck_half_block)(6, vectors, a + i * units, b, units, c + i * ldc, ldc, last, adds);
  for (; i + 2 <= m; i += 2)
    CK_NAME(ck_half_block)(2, vectors, a + i * units, b, units, c + i * ldc, ldc, last, adds);
  if (i < m) CK_NAME(ck_half_block)(1, vectors, a + i * units, b, units, c + i * ldc, ldc, last, adds);
}

static __attribute__((noinline, unused)) void CK_NAME(ck_half_multiply)(
    const uint32_t *a, const uint32_t *b, long m, long n, long units, float *c, long ldc, bool adds) {
  const __mmask16 last = CK_NAME(ck_half_lanes)((n - 1) % 16 + 1);
  switch ((n + 15) / 16) {
  case 4: CK_NAME(ck_half_panel)(4, a, b, m, units, c, ldc, last, adds); return;
  case 3: CK_NAME(ck_half_panel)(3, a, b, m, units, c, ldc, last, adds); return;
  case 2: CK_NAME(ck_half_panel)(2, a, b, m, units, c, ldc, last, adds); return;
  default: CK_NAME(ck_half_panel)(1, a, b, m, units, c, ldc, last, adds); return;
  }
}
#endif

// C = beta C: what a product without operands leaves, and the way to a beta that is neither 0 nor 1.
static __attribute__((noinline, unused)) void CK_NAME(ck_half_scale)(long m, long n, float *c, long ldc,
                                                                     float beta) {
  for (long i = 0; i < m; i++)
    for (long j = 0; j < n; j++) c[i * ldc + j] = beta == 0.0f ? 0.0f : beta * c[i * ldc + j];
}

CK_TILE_INLINE void CK_NAME(ck_half_product)(const bool a_across, const bool b_along, long m, long n,
                                             long k, float alpha, const float *a, long lda,
                                             const float *b, long ldb, float beta, float *c, long ldc) {
  if (m <= 0 || n <= 0) return;
  if (k <= 0 || (beta != 0.0f && beta != 1.0f)) CK_NAME(ck_half_scale)(m, n, c, ldc, beta);
  const bool adds = beta != 0.0f;
  CK_NAME(ck_half_panels) panels;
  for (long k0 = 0; k0 < k; k0 += CK_HALF_DEPTH) {
    const long depth = k - k0 < CK_HALF_DEPTH ? k - k0 : CK_HALF_DEPTH;
    const long units = (depth + CK_HALF_STEP - 1) / CK_HALF_STEP * (CK_HALF_STEP / 2);
    for (long j = 0; j < n; j += CK_HALF_COLUMNS) {
      const long columns = n - j < CK_HALF_COLUMNS ? n - j : CK_HALF_COLUMNS;
      if (b_along)
        CK_NAME(ck_half_pack_columns_along)(panels.b, units, b + j * ldb + k0, ldb, columns, depth);
      else CK_NAME(ck_half_pack_columns)(panels.b, units, b + k0 * ldb + j, ldb, columns, depth);
      for (long i = 0; i < m; i += CK_HALF_ROWS) {
        const long rows = m - i < CK_HALF_ROWS ? m - i : CK_HALF_ROWS;
        if (j > 0 && m <= CK_HALF_ROWS) {
          // A is packed already.
        } else if (a_across) {
          CK_NAME(ck_half_pack_rows_across)(panels.a, units, a + k0 * lda + i, lda, rows, depth, alpha);
        } else {
          CK_NAME(ck_half_pack_rows)(panels.a, units, a + i * lda + k0, lda, rows, depth, alpha);
        }
        CK_NAME(ck_half_multiply)(panels.a, panels.b, rows, columns, units, c + i * ldc + j, ldc,
                                  adds || k0 > 0);
      }
    }
  }
}

static __attribute__((noinline, unused)) void CK_NAME(ck_half_nn)(
    long m, long n, long k, float alpha, const float *a, long lda, const float *b, long ldb, float beta,
    float *c, long ldc) {
  CK_NAME(ck_half_product)(false, false, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
static __attribute__((noinline, unused)) void CK_NAME(ck_half_tn)(
    long m, long n, long k, float alpha, const float *a, long lda, const float *b, long ldb, float beta,
    float *c, long ldc) {
  CK_NAME(ck_half_product)(true, false, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
static __attribute__((noinline, unused)) void CK_NAME(ck_half_nt)(
    long m, long n, long k, float alpha, const float *a, long lda, const float *b, long ldb, float beta,
    float *c, long ldc) {
  CK_NAME(ck_half_product)(false, true, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

#define ck_tile_begin ck_half_begin
#define ck_tile_end ck_half_end
#define ck_tile_nn ck_half_nn
#define ck_tile_tn ck_half_tn
#define ck_tile_nt ck_half_nt
#define CK_TILE_IS_HALF 1
