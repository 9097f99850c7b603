// Pairs of bfloat16 in registers, what the products' operands are made of. For level files that have AVX-512 and
// bfloat16 conversions and include immintrin.h.
#pragma once
#define CK_PAIR_INLINE static inline __attribute__((always_inline, unused))

CK_PAIR_INLINE __mmask16 CK_NAME(ck_half_lanes)(long count) {
  return count >= 16 ? (__mmask16)0xFFFF : count <= 0 ? (__mmask16)0 : (__mmask16)((1u << count) - 1);
}

// Pairs (row[j], next[j]) of 16 columns.
CK_PAIR_INLINE __m512i CK_NAME(ck_half_zip)(__m512 row, __m512 next) {
  const __m512i order = _mm512_set_epi16(
      31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3,
      18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(next, row));
}

CK_PAIR_INLINE __mmask32 CK_NAME(ck_half_lanes32)(long count) {
  return count >= 32 ? ~(__mmask32)0 : count <= 0 ? (__mmask32)0 : ((__mmask32)1 << count) - 1;
}

// Pairs (row[j], next[j]) of columns 16 `half` to 16 `half` + 15 of rows of bfloat16.
CK_PAIR_INLINE __m512i CK_NAME(ck_half_interleave)(__m512i row, __m512i next, const int half) {
  const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                         37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  return _mm512_permutex2var_epi16(row, _mm512_add_epi16(order, _mm512_set1_epi16((short)(16 * half))), next);
}

// Pairs along one row of `count` numbers, zeros behind them.
CK_PAIR_INLINE __m512i CK_NAME(ck_half_row)(const float *row, long count, __m512 alpha) {
  const __m512 low = _mm512_maskz_loadu_ps(CK_NAME(ck_half_lanes)(count), row);
  const __m512 high = _mm512_maskz_loadu_ps(CK_NAME(ck_half_lanes)(count - 16), row + 16);
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(high, alpha), _mm512_mul_ps(low, alpha));
}

// The even and the odd quarters of two rows, one row's after the other's.
CK_PAIR_INLINE void CK_NAME(ck_half_deal)(__m512i one, __m512i two, __m512i *even, __m512i *odd) {
  *even = _mm512_shuffle_i32x4(one, two, 0x88);
  *odd = _mm512_shuffle_i32x4(one, two, 0xDD);
}

// 16 x 16 words in registers.
CK_PAIR_INLINE void CK_NAME(ck_half_transpose)(__m512i *v) {
  __m512i t[16];
#pragma clang loop unroll(full)
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // v[4 i + c]: column 4 l + c of rows 4 i to 4 i + 3 in the 128 bits l.
#pragma clang loop unroll(full)
  for (int c = 0; c < 4; c++) {
    CK_NAME(ck_half_deal)(v[c], v[4 + c], t + c, t + 4 + c);
    CK_NAME(ck_half_deal)(v[8 + c], v[12 + c], t + 8 + c, t + 12 + c);
  }
#pragma clang loop unroll(full)
  for (int c = 0; c < 4; c++) {
    CK_NAME(ck_half_deal)(t[c], t[8 + c], v + c, v + 8 + c);
    CK_NAME(ck_half_deal)(t[4 + c], t[12 + c], v + 4 + c, v + 12 + c);
  }
}
