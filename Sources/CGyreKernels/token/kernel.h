// What one instruction level supplies to the portable driver.
#pragma once
#include "../blocks/kernel.h"
#include "../gemm/kernel.h"
#include "ck_token.h"

/// Outputs [first, first + count) of a product from their sums.
struct ck_token_finish {
  const struct ck_token_product *product;
  long sequence, first, count;
  float *sums, *second;      // changed; second: of the other half of a pair
};

struct ck_token_kernels {
  /// Operand of one sequence to `to`; `work` has as many floats.
  void (*operand)(const struct ck_token_step_args *args, const struct ck_token_operand *o, long b,
                  float *to, float *work);
  /// Writes mix i of x and last, all `stride` apart from `to` on.
  void (*shift)(const struct ck_token_products *p, const float *x, const float *last, float *to,
                long size, long stride);
  void (*finish)(const struct ck_token_step_args *args, const struct ck_token_finish *f);
  void (*embed)(const struct ck_token_embedding *e, long b, float *row);
  /// Heads [begin, end) of all sequences.
  void (*step)(const struct ck_token_step_args *args, const struct ck_token_matrix *m, long begin,
               long end);
  /// Pieces [begin, end) of all sequences.
  void (*attend)(const struct ck_token_step_args *args, const struct ck_token_attention *a, long begin,
                 long end);
};

extern const struct ck_token_kernels ck_token_kernels_generic;
#if defined(__x86_64__)
extern const struct ck_token_kernels ck_token_kernels_avx2, ck_token_kernels_avx512;
#elif defined(__aarch64__)
extern const struct ck_token_kernels ck_token_kernels_neon;
#endif

struct ck_token_level {
  const struct ck_token_kernels *kernels;
  const struct ck_gemm_level *products;
  const struct ck_blocks_level *blocks;
};

void ck_token_run(const struct ck_token_level *level, const struct ck_token_step_args *args);

/// Slots of the cache in use with the new token, and the pieces that they make.
static inline long ck_token_seen(const struct ck_token_attention *a, long position) {
  return a->window > 0 && position >= a->window ? a->window : position + 1;
}
static inline long ck_token_pieces(const struct ck_token_attention *a, long position) {
  return (ck_token_seen(a, position) + CK_TOKEN_PIECE - 1) / CK_TOKEN_PIECE;
}
