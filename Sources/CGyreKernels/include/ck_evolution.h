// Perturbations of a population in float32: noise from a counter, and products of low rank.
#pragma once
#include "ck_common.h"

#ifdef __cplusplus
extern "C" {
#endif

/// Number i of row r: the four bytes of Philox word i mod 4 of the key `seed` and the counter
/// (i / 4, pair, leaf, epoch) summed, less 510, times `scale`; pair = member / 2. A negative member's
/// numbers are 0. With `is_signed` those of odd members are negated.
struct ck_noise_args {
  long rows, count;
  const int32_t *members;     // [rows]
  uint64_t seed;
  uint32_t leaf, epoch;
  uint32_t first;             // the first i, a multiple of 4
  float scale;
  bool is_signed;
  float *out;                 // [rows, count]
};

/// y[b, t] += sum over l of z[l] up[b, l] with z[l] = x[b, t] . down[b, l], or, where tokens are given,
/// z[l] = down[b, l, token].
struct ck_low_rank_args {
  long rows, tokens, rank, inputs, outputs;  // R, T, r, K, N
  const float *x;             // [R, T, K], or NULL
  const int32_t *ids;         // [R, T] in [0, K), where x is NULL
  const float *down;          // [R, r, K]
  const float *up;            // [R, r, N]
  float *y;                   // [R, T, N]
};

struct ck_evolution_table {
  void (*noise)(const struct ck_noise_args *);
  void (*low_rank)(const struct ck_low_rank_args *);
};

/// Fills the best kernels that `level` contains; false where this architecture lacks the level.
bool ck_evolution_table_for(enum ck_level level, struct ck_evolution_table *out);

#ifdef __cplusplus
}
#endif
