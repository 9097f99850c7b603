// Rows whose results are rounded to bfloat16: gates within 1e-4 of their value, conversions by instruction. For
// level files that have AVX-512 and bfloat16 conversions and include immintrin.h.
#pragma once
#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include "rough_gates.h"
#include "stream_line.h"

// Lanes of a vector's part of `count` numbers.
CK_ROUGH __mmask16 ck_rough_lanes(long count) {
  return count >= 16 ? (__mmask16)0xFFFF : count <= 0 ? (__mmask16)0 : (__mmask16)((1u << count) - 1);
}

// The first 16 of `left` numbers. Masks are for ends alone: on AMD such loads wait for lines from memory.
CK_ROUGH __m512 ck_rough_part(const float *x, long left) {
  return left >= 16 ? _mm512_loadu_ps(x) : _mm512_maskz_loadu_ps(ck_rough_lanes(left), x);
}

// The same of an array of float32, or of bfloat16 where `half`.
CK_ROUGH __m512 ck_rough_numbers(const void *array, bool half, long at, long left) {
  if (!half) return ck_rough_part((const float *)array + at, left);
  const uint16_t *x = (const uint16_t *)array + at;
  const __m256i words = left >= 16 ? _mm256_loadu_si256((const void *)x)
                                   : _mm256_maskz_loadu_epi16(ck_rough_lanes(left), x);
  return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16);
}

CK_ROUGH void ck_rough_put(float *y, long left, __m512 v) {
  if (left >= 16) _mm512_storeu_ps(y, v);
  else _mm512_mask_storeu_ps(y, ck_rough_lanes(left), v);
}

/// value = x sigma(x) or sigma(x), slope its derivative where asked for.
CK_ROUGH void ck_rough_gates(const float *x, float *value, float *slope, long n, bool times) {
  for (long i = 0; i < n; i += 16) {
    const __m512 v = ck_rough_part(x + i, n - i);
    __m512 s, d;
    if (slope) {
      s = ck_rough_sigmoid_slope(v, &d);
      if (times) d = _mm512_fmadd_ps(v, d, s);
      ck_rough_put(slope + i, n - i, d);
    } else {
      s = ck_rough_sigmoid(v);
    }
    if (value) ck_rough_put(value + i, n - i, times ? _mm512_mul_ps(v, s) : s);
  }
}

// 32 numbers of bfloat16 as float32: those at even places and those at odd ones.
typedef struct { __m512 even, odd; } ck_rough_pair;

CK_ROUGH ck_rough_pair ck_rough_widen(__m512i words) {
  return (ck_rough_pair){(__m512)_mm512_slli_epi32(words, 16),
                         (__m512)_mm512_and_si512(words, _mm512_set1_epi32((int)0xFFFF0000u))};
}

CK_ROUGH __m512i ck_rough_round(ck_rough_pair v) {
  const __m512i order = _mm512_set_epi16(
      31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3,
      18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(v.odd, v.even));
}

CK_ROUGH __mmask32 ck_rough_words(long count) {
  return count >= 32 ? (__mmask32)-1 : (__mmask32)((1u << count) - 1);
}

CK_ROUGH ck_rough_pair ck_rough_load(const uint16_t *x, __mmask32 words) {
  return ck_rough_widen(words == (__mmask32)-1 ? _mm512_loadu_si512(x) : _mm512_maskz_loadu_epi16(words, x));
}

// `line`: the address is a line's, which goes past the caches.
CK_ROUGH void ck_rough_store(uint16_t *y, __mmask32 words, bool line, ck_rough_pair v) {
  const __m512i rounded = ck_rough_round(v);
  if (line) ck_stream_line(y, rounded);
  else if (words == (__mmask32)-1) _mm512_storeu_si512(y, rounded);
  else _mm512_mask_storeu_epi16(y, words, rounded);
}

/// A row of float32 as bfloat16.
CK_ROUGH void ck_rough_row(uint16_t *y, const float *x, long n) {
  for (long i = 0; i < n; i += 32) {
    const __m512 low = ck_rough_part(x + i, n - i), high = ck_rough_part(x + i + 16, n - i - 16);
    const __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    if (n - i >= 32) _mm512_storeu_si512(y + i, rounded);
    else _mm512_mask_storeu_epi16(y + i, ck_rough_words(n - i), rounded);
  }
}
