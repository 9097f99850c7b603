// Row reductions and loop hints that several families share. Included by body.inc files, after
// level.h, so that it is compiled for the level.
#pragma once
#include <stdint.h>
#include "vmath.h"

// Element-wise loops may write over one of their inputs (same address, never shifted), which the
// compiler's run-time overlap check would send down a scalar path.
#define CK_ELEMENTWISE _Pragma("clang loop vectorize(assume_safety)")

typedef float ck_lanes __attribute__((ext_vector_type(CK_LANES), aligned(4)));
typedef int32_t ck_lanes_mask __attribute__((ext_vector_type(CK_LANES), aligned(4)));

static inline long ck_min_long(long a, long b) { return a < b ? a : b; }
static inline long ck_max_long(long a, long b) { return a > b ? a : b; }
static inline float ck_min_float(float a, float b) { return a < b ? a : b; }
static inline float ck_max_float(float a, float b) { return a > b ? a : b; }
static inline long ck_ceil_div(long a, long b) { return (a + b - 1) / b; }

static inline ck_lanes ck_load_lanes(const float *x) { return *(const ck_lanes *)x; }

static inline uint16_t bf16_from_float(float x) {
  const uint32_t bits = ck_bits_from_float(x);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return (uint16_t)(x == x ? rounded : ((bits >> 16) | 0x40u));
}

static inline float float_from_bf16(uint16_t x) { return ck_float_from_bits((uint32_t)x << 16); }

/// Rows of bfloat16 as float32, and of float32 rounded to nearest.
static inline void ck_widen_row(const uint16_t *row, long n, float *out) {
  CK_ELEMENTWISE for (long i = 0; i < n; i++) out[i] = float_from_bf16(row[i]);
}
static inline void ck_round_row(const float *row, long n, uint16_t *out) {
  CK_ELEMENTWISE for (long i = 0; i < n; i++) out[i] = bf16_from_float(row[i]);
}

/// n numbers of an array from `at` on: the array itself, or those of one of bfloat16 in `buffer`.
static inline const float *ck_row_of(const void *array, bool half, long at, long n, float *buffer) {
  if (!half) return (const float *)array + at;
  ck_widen_row((const uint16_t *)array + at, n, buffer);
  return buffer;
}

/// Σ x[i], in blocks so that the rounding error of long rows stays small with few lanes too.
static inline float ck_row_sum(const float *x, long n) {
#pragma clang fp reassociate(on)
  float total = 0;
  for (long begin = 0; begin < n; begin += 1024) {
    const long end = ck_min_long(n, begin + 1024);
    float sum = 0;
    for (long i = begin; i < end; i++) sum += x[i];
    total += sum;
  }
  return total;
}

/// Σ x[i] y[i].
static inline float ck_row_dot(const float *x, const float *y, long n) {
#pragma clang fp reassociate(on) contract(fast)
  float total = 0;
  for (long begin = 0; begin < n; begin += 1024) {
    const long end = ck_min_long(n, begin + 1024);
    float sum = 0;
    for (long i = begin; i < end; i++) sum += x[i] * y[i];
    total += sum;
  }
  return total;
}

/// max x[i]; NaN where a NaN is among them, −∞ for n = 0.
static inline float ck_row_max(const float *x, long n) {
  ck_lanes m0 = -__builtin_inff(), m1 = m0;
  ck_lanes_mask nan = 0;
  long i = 0;
  for (; i + 2 * CK_LANES <= n; i += 2 * CK_LANES) {
    const ck_lanes a = ck_load_lanes(x + i), b = ck_load_lanes(x + i + CK_LANES);
    m0 = a > m0 ? a : m0;
    m1 = b > m1 ? b : m1;
    nan |= (a != a) | (b != b);
  }
  m0 = m1 > m0 ? m1 : m0;
  float max = -__builtin_inff();
  int32_t any = 0;
  for (int j = 0; j < CK_LANES; j++) {
    max = m0[j] > max ? m0[j] : max;
    any |= nan[j];
  }
  for (; i < n; i++) {
    max = x[i] > max ? x[i] : max;
    any |= x[i] != x[i];
  }
  return any ? __builtin_nanf("") : max;
}

/// Whether an array of so many floats is better written past the caches.
static inline bool ck_streams(long count) { return count * (long)sizeof(float) > CK_STREAMED_BYTES; }

/// out = row; `streams`: whole lines go to memory without being read first. ck_stream_end follows the last.
static inline void ck_put_row(float *out, const float *row, long n, bool streams) {
  typedef float line __attribute__((vector_size(64)));
  long i = 0;
  if (streams && (uintptr_t)out % sizeof(line) == 0)
    for (; i + 16 <= n; i += 16) {
      line v;
      memcpy(&v, row + i, sizeof v);
      __builtin_nontemporal_store(v, (line *)(out + i));
    }
  memcpy(out + i, row + i, (size_t)(n - i) * sizeof(float));
}

/// Makes streamed lines visible before the caller's thread reports its part done.
static inline void ck_stream_end(bool streams) {
#if defined(__x86_64__)
  if (streams) __builtin_ia32_sfence();
#else
  (void)streams;
#endif
}
