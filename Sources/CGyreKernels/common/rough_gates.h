// Gate functions for results that are rounded to bfloat16: 2^r by a cubic, an estimate for the division. For level
// files that have AVX-512 and include immintrin.h.
#pragma once
#include <immintrin.h>
#define CK_ROUGH static inline __attribute__((always_inline, unused))

// 2^y within 7.5e-5 of it; 2^-inf = 0, 2^inf = inf.
CK_ROUGH __m512 ck_rough_power(__m512 y) {
  const __m512 r = _mm512_reduce_ps(y, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  __m512 p = _mm512_set1_ps(7.802452e-2f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.2606716e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.9583354e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.9992522e-1f));
  return _mm512_scalef_ps(p, y);
}

CK_ROUGH __m512 ck_rough_sigmoid(__m512 x) {
  const __m512 e = ck_rough_power(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269502f)));
  return _mm512_rcp14_ps(_mm512_add_ps(e, _mm512_set1_ps(1.0f)));
}

// sigma(x), and sigma(x) sigma(-x) without cancellation.
CK_ROUGH __m512 ck_rough_sigmoid_slope(__m512 x, __m512 *slope) {
  const __m512 y = _mm512_or_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269502f)), _mm512_set1_ps(-0.0f));
  const __m512 e = ck_rough_power(y), d = _mm512_rcp14_ps(_mm512_add_ps(e, _mm512_set1_ps(1.0f)));
  const __m512 small = _mm512_mul_ps(e, d);
  *slope = _mm512_mul_ps(small, d);
  return _mm512_mask_mov_ps(d, _mm512_movepi32_mask((__m512i)x), small);
}

// tanh(x) within 6e-5 of it, near 0 as well.
CK_ROUGH __m512 ck_rough_tanh(__m512 x) {
  // NaN is the second operand's.
  x = _mm512_max_ps(_mm512_set1_ps(-10.0f), _mm512_min_ps(_mm512_set1_ps(10.0f), x));
  const __m512 y = _mm512_mul_ps(x, _mm512_set1_ps(2 * 1.44269502f)), one = _mm512_set1_ps(1.0f);
  const __m512 n = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT), s = _mm512_scalef_ps(one, n);
  const __m512 r = _mm512_sub_ps(y, n);
  // (2^r - 1) / r for |r| <= 1/2.
  __m512 p = _mm512_set1_ps(9.61811e-3f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.583729e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4023252e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.9313686e-1f));
  const __m512 e = _mm512_fmadd_ps(s, _mm512_mul_ps(p, r), _mm512_sub_ps(s, one));
  return _mm512_mul_ps(e, _mm512_rcp14_ps(_mm512_add_ps(e, _mm512_set1_ps(2.0f))));
}
