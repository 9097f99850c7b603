// Elementary functions on float, branch-free so that loops over them autovectorise at every level.
// Errors are a few units in the last place (relative, also near zeros of the function); infinities
// and huge arguments give the limit, NaN propagates. Not here: sine and cosine (pointwise/trig.inc).
//
// Selects are written so that a NaN argument fails the comparison and is kept.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float ck_float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t ck_bits_from_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// x = n ln2 + r with |r| ≤ ln2/2. Adding 1.5·2^23 rounds to an integer and leaves it in the low
// mantissa bits, without the rounding instruction that plain SSE2 lacks.
#define CK_ROUND_MAGIC 12582912.0f
#define CK_LN2_HIGH 0.693359375f        // few mantissa bits: n · CK_LN2_HIGH is exact
#define CK_LN2_LOW (-2.12194440e-4f)

static inline float ck_exp_reduce(float x, int32_t *n) {
  const float shifted = x * 1.44269504088896341f + CK_ROUND_MAGIC;
  const float nf = shifted - CK_ROUND_MAGIC;
  *n = (int32_t)(ck_bits_from_float(shifted) - 0x4B400000u);
  const float r = x - nf * CK_LN2_HIGH;
  return r - nf * CK_LN2_LOW;
}

// (exp(r) − 1 − r) / r² for |r| ≤ ln2/2.
static inline float ck_exp_tail(float r) {
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  return p * r + 5.0000001201e-1f;
}

// 2^n for −126 ≤ n ≤ 127.
static inline float ck_exp2i(int32_t n) {
  return ck_float_from_bits(((uint32_t)n + 127u) << 23);
}

/// eˣ. exp(−∞) = 0, exp(x > 88.72) = ∞; results below 2⁻¹²⁶ are 0, because processors are slow on
/// denormal numbers and closed gates (log decay −10³⁰) are common.
static inline float ck_expf(float x) {
  float c = x < -87.3f ? -87.3f : x;
  c = c > 89.0f ? 89.0f : c;
  int32_t n;
  const float r = ck_exp_reduce(c, &n);
  const float y = ck_exp_tail(r) * (r * r) + r + 1.0f;
  // Two factors, because 2¹²⁸ is not a float.
  const int32_t half = n >> 1;
  const float z = y * ck_exp2i(half) * ck_exp2i(n - half);
  return x < -87.3f ? 0.0f : z;
}

/// eˣ − 1, exact to a few ulp near 0.
static inline float ck_expm1f(float x) {
  x = x < -18.0f ? -18.0f : x;
  x = x > 89.0f ? 89.0f : x;
  int32_t n;
  const float r = ck_exp_reduce(x, &n);
  const float q = ck_exp_tail(r) * (r * r) + r;
  const float s = ck_exp2i(n - 1);   // half the power: n reaches 128
  return 2.0f * (s * q + (s - 0.5f));
}

/// tanh(x).
static inline float ck_tanhf(float x) {
  float a = 2.0f * __builtin_fabsf(x);
  a = a > 20.0f ? 20.0f : a;
  int32_t n;
  const float r = ck_exp_reduce(a, &n);
  const float q = ck_exp_tail(r) * (r * r) + r;
  const float s = ck_exp2i(n);
  const float e = s * q + (s - 1.0f);   // exp(a) - 1
  return __builtin_copysignf(e / (e + 2.0f), x);
}

/// 1 + e⁻ˣ, infinite where that is too large for a float.
static inline float ck_one_plus_exp(float x) {
  float c = x > 87.3f ? 87.3f : x;
  c = c < -89.0f ? -89.0f : c;
  int32_t n;
  const float r = ck_exp_reduce(-c, &n);
  // n = 128 gives the bits of infinity, as it should.
  return (ck_exp_tail(r) * (r * r) + r + 1.0f) * ck_exp2i(n) + 1.0f;
}

/// σ(x) = 1 / (1 + e⁻ˣ).
static inline float ck_sigmoidf(float x) { return 1.0f / ck_one_plus_exp(x); }

// log(u) + correction for finite positive u; correction is small against log(u) or u is near 1.
static inline float ck_log_sum(float u, float correction) {
  const float is_tiny = u < 1.17549435e-38f ? 1.0f : 0.0f;
  u = u < 1.17549435e-38f ? u * 8388608.0f : u;
  uint32_t bits = ck_bits_from_float(u) + (0x3F800000u - 0x3F3504F3u);
  const float k = (float)((int32_t)(bits >> 23) - 127) - 23.0f * is_tiny;
  bits = (bits & 0x007FFFFFu) + 0x3F3504F3u;
  const float f = ck_float_from_bits(bits) - 1.0f;   // in [√½ − 1, √2 − 1]
  const float s = f / (2.0f + f);
  const float z = s * s, w = z * z;
  const float series = z * (0.66666662693f + w * 0.28498786688f)
                     + w * (0.40000972152f + w * 0.24279078841f);
  const float half_square = 0.5f * f * f;
  const float low = s * (half_square + series) + (k * 9.0580006145e-6f + correction);
  return low - half_square + f + k * 6.9313812256e-1f;
}

/// log(x). log(0) = −∞, log(x < 0) = NaN.
static inline float ck_logf(float x) {
  float y = ck_log_sum(x, 0.0f);
  y = x == 0.0f ? -__builtin_inff() : y;
  y = x == __builtin_inff() ? x : y;
  y = x < 0.0f ? __builtin_nanf("") : y;
  return x == x ? y : x;
}

/// log(1 + x), exact to a few ulp near 0.
static inline float ck_log1pf(float x) {
  const float u = 1.0f + x;
  // What rounding 1 + x lost, to first order.
  const float lost = u - x > 1.0f ? 1.0f - (u - x) : x - (u - 1.0f);
  float y = ck_log_sum(u, lost / u);
  y = u == 0.0f ? -__builtin_inff() : y;
  y = x == __builtin_inff() ? x : y;
  y = u < 0.0f ? __builtin_nanf("") : y;
  // Keeps the sign of zero and denormals.
  y = __builtin_fabsf(x) < 1e-10f ? x : y;
  return x == x ? y : x;
}

/// log(1 + eˣ).
static inline float ck_softplusf(float x) {
  return (x > 0.0f ? x : 0.0f) + ck_log1pf(ck_expf(-__builtin_fabsf(x)));
}

/// log σ(x).
static inline float ck_logsigmoidf(float x) { return -ck_softplusf(-x); }

/// x σ(x).
static inline float ck_siluf(float x) { return x / ck_one_plus_exp(x); }

/// The tanh form of GELU, ½x(1 + tanh(√(2/π)(x + 0.044715x³))) = x σ(2√(2/π)(x + 0.044715x³)).
static inline float ck_geluf_tanh(float x) {
  return x * ck_sigmoidf(1.5957691216f * (x + 0.044715f * x * x * x));
}

/// erf(x).
static inline float ck_erff(float x) {
  const float t = __builtin_fabsf(x), s = x * x;
  // 1 − exp(polynomial) away from zero, an odd polynomial near it.
  float p = -1.72853470e-5f * t + 3.83197126e-4f;
  const float u = -3.88396438e-3f * t + 2.42546219e-2f;
  p = p * s + u;
  p = p * t - 1.06777877e-1f;
  p = p * t - 6.34846687e-1f;
  p = p * t - 1.28717512e-1f;
  p = p * t - t;
  const float far = __builtin_copysignf(1.0f - ck_expf(t > 4.0f ? -80.0f : p), x);
  float q = -5.96761703e-4f;
  q = q * s + 4.99119423e-3f;
  q = q * s - 2.67681349e-2f;
  q = q * s + 1.12819925e-1f;
  q = q * s - 3.76125336e-1f;
  q = q * s + 1.28379166e-1f;
  const float near = q * x + x;
  const float y = t > 0.927734375f ? far : near;
  return x == x ? y : x;
}

/// GELU, ½x(1 + erf(x/√2)).
static inline float ck_geluf_erf(float x) {
  return 0.5f * x * (1.0f + ck_erff(0.70710678118f * x));
}
