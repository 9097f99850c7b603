// Rows of float32 or bfloat16 rounded once into the layouts of products (tile_gemm_bf16.h), for engines whose
// operands meet several products: "along" are rows of pairs of their own numbers, a left operand; "pairs" hold two
// rows' numbers of 64 columns, a right operand; turning a block's words makes one of the other's transpose.
#pragma once
#include "tile_gemm_bf16.h"

// [words, ld] from `rows` rows of `units` words each; rows and words are multiples of 16.
static __attribute__((unused)) void CK_NAME(ck_half_turn)(uint32_t *out, long ld, const uint32_t *in,
                                                          long units, long rows, long words) {
  for (long r = 0; r < rows; r += 16)
    for (long c = 0; c < words; c += 16) {
      __m512i v[16];
#pragma clang loop unroll(full)
      for (int i = 0; i < 16; i++) v[i] = _mm512_load_si512(in + (r + i) * units + c);
      CK_NAME(ck_half_transpose)(v);
#pragma clang loop unroll(full)
      for (int i = 0; i < 16; i++) _mm512_store_si512(out + (c + i) * ld + r, v[i]);
    }
}

// The sums of 16 vectors' numbers, [16, 16].
static __attribute__((unused)) __m512 CK_NAME(ck_half_sums)(const float *in) {
  __m512 v[16];
#pragma clang loop unroll(full)
  for (int i = 0; i < 16; i += 2) {
    const __m512 one = _mm512_load_ps(in + 16 * i), two = _mm512_load_ps(in + 16 * i + 16);
    v[i / 2] = _mm512_add_ps(_mm512_unpacklo_ps(one, two), _mm512_unpackhi_ps(one, two));
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < 8; i += 2) {
    const __m512d one = (__m512d)v[i], two = (__m512d)v[i + 1];
    v[i / 2] = _mm512_add_ps((__m512)_mm512_unpacklo_pd(one, two), (__m512)_mm512_unpackhi_pd(one, two));
  }
#pragma clang loop unroll(full)
  for (int n = 4; n > 1; n /= 2)
#pragma clang loop unroll(full)
    for (int i = 0; i < n; i += 2)
      v[i / 2] = _mm512_add_ps(_mm512_shuffle_f32x4(v[i], v[i + 1], 0x88), _mm512_shuffle_f32x4(v[i], v[i + 1], 0xDD));
  return v[0];
}

// A masked load waits for its line on some processors.
CK_TILE_INLINE __m512i CK_NAME(ck_half_words)(__mmask32 lanes, const uint16_t *row) {
  return lanes == ~(__mmask32)0 ? _mm512_loadu_si512(row) : _mm512_maskz_loadu_epi16(lanes, row);
}

// 16 numbers of a row of float32, or of bfloat16 if `stored`.
CK_TILE_INLINE __m512 CK_NAME(ck_half_numbers)(const bool stored, const void *row, long at, __mmask16 lanes) {
  const bool all = lanes == (__mmask16)0xFFFF;
  if (!stored) {
    const float *x = (const float *)row + at;
    return all ? _mm512_loadu_ps(x) : _mm512_maskz_loadu_ps(lanes, x);
  }
  const uint16_t *x = (const uint16_t *)row + at;
  const __m256i words = all ? _mm256_loadu_si256((const __m256i *)x) : _mm256_maskz_loadu_epi16(lanes, x);
  return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16);
}

// `rows` rows (an even number, zeros behind `n`) of `width` <= 64 numbers, times `by` of their row: in
// pairs, in pairs times `factor` of their row, along; and `kept` gets the numbers (float32) times `keep`.
CK_TILE_INLINE void CK_NAME(ck_half_rows_body)(const bool stored, const bool whole, const void *in, long ld, long n,
                            long rows, long width, const float *by, uint32_t *pairs, const float *factor,
                            uint32_t *scaled, uint32_t *along, long units, float *kept, float keep) {
  const __m512 stays = _mm512_set1_ps(keep);
  const __mmask16 any = keep != 0.0f ? (__mmask16)0xFFFF : (__mmask16)0;
  const bool copies = stored && !by;
  for (long t = 0; t < rows; t += 2) {
    const char *row = (const char *)in + t * ld * (stored ? 2 : 4), *after = row + ld * (stored ? 2 : 4);
    __m512 first = _mm512_setzero_ps(), second = first;
    if (scaled) {
      first = _mm512_set1_ps((whole || t < n) ? factor[t] : 0.0f);
      second = _mm512_set1_ps((whole || t + 1 < n) ? factor[t + 1] : 0.0f);
    }
    for (long j = 0; j < width; j += 32) {
      __m512 x[2][2];
#pragma clang loop unroll(full)
      for (int h = 0; h < 2; h++) {
        const __mmask16 lanes = CK_NAME(ck_half_lanes)(width - j - 16 * h);
        const __mmask16 here = (whole || t < n) ? lanes : 0, next = (whole || t + 1 < n) ? lanes : 0;
        x[0][h] = CK_NAME(ck_half_numbers)(stored, row, j + 16 * h, here);
        x[1][h] = CK_NAME(ck_half_numbers)(stored, after, j + 16 * h, next);
        if (by) {
          x[0][h] = _mm512_mul_ps(x[0][h], _mm512_set1_ps((whole || t < n) ? by[t] : 0.0f));
          x[1][h] = _mm512_mul_ps(x[1][h], _mm512_set1_ps((whole || t + 1 < n) ? by[t + 1] : 0.0f));
        }
        if (kept) {
          float *out = kept + t * ld + j + 16 * h;
          _mm512_mask_storeu_ps(out, here, _mm512_maskz_mul_ps(any, x[0][h], stays));
          _mm512_mask_storeu_ps(out + ld, next, _mm512_maskz_mul_ps(any, x[1][h], stays));
        }
        const long at = t * 32 + j + 16 * h;
        if (pairs && !copies) _mm512_store_si512(pairs + at, CK_NAME(ck_half_zip)(x[0][h], x[1][h]));
        if (scaled)
          _mm512_store_si512(scaled + at,
                             CK_NAME(ck_half_zip)(_mm512_mul_ps(x[0][h], first),
                                                  _mm512_mul_ps(x[1][h], second)));
      }
      if (copies) {
        const __mmask32 lanes = CK_NAME(ck_half_lanes32)(width - j);
        const __m512i one = CK_NAME(ck_half_words)((whole || t < n) ? lanes : 0, (const uint16_t *)row + j);
        const __m512i two = CK_NAME(ck_half_words)((whole || t + 1 < n) ? lanes : 0, (const uint16_t *)after + j);
        if (pairs) {
          _mm512_store_si512(pairs + t * 32 + j, CK_NAME(ck_half_interleave)(one, two, 0));
          _mm512_store_si512(pairs + t * 32 + j + 16, CK_NAME(ck_half_interleave)(one, two, 1));
        }
        if (along) {
          _mm512_store_si512(along + t * units + j / 2, one);
          _mm512_store_si512(along + (t + 1) * units + j / 2, two);
        }
      } else if (along) {
        _mm512_store_si512(along + t * units + j / 2,
                           (__m512i)_mm512_cvtne2ps_pbh(x[0][1], x[0][0]));
        _mm512_store_si512(along + (t + 1) * units + j / 2,
                           (__m512i)_mm512_cvtne2ps_pbh(x[1][1], x[1][0]));
      }
    }
  }
}
// Whole blocks, the most there are, without masks.
CK_TILE_INLINE void CK_NAME(ck_half_rows_of)(const bool stored, const void *in, long ld, long n, long rows,
                            long width, const float *by, uint32_t *pairs, const float *factor, uint32_t *scaled,
                            uint32_t *along, long units, float *kept, float keep) {
  if (n == rows && width == 64)
    CK_NAME(ck_half_rows_body)(stored, true, in, ld, n, n, 64, by, pairs, factor, scaled, along, units, kept, keep);
  else
    CK_NAME(ck_half_rows_body)(stored, false, in, ld, n, rows, width, by, pairs, factor, scaled, along, units, kept,
                               keep);
}
CK_TILE_INLINE void CK_NAME(ck_half_rows)(const float *in, long ld, long n, long rows, long width,
                            const float *by, uint32_t *pairs, const float *factor, uint32_t *scaled,
                            uint32_t *along, long units, float *kept, float keep) {
  CK_NAME(ck_half_rows_of)(false, in, ld, n, rows, width, by, pairs, factor, scaled, along, units, kept, keep);
}
