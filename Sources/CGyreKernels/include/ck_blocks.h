// Products with weights that stay in the blocks of GGUF files: x = (q - zero) d + m, a scale d and
// perhaps a minimum m for each run of 16 or 32 values.
#pragma once
#include "ck_common.h"

#ifdef __cplusplus
extern "C" {
#endif

/// Types by their blocks. Rows are whole blocks: 32 values, 256 for those of the K kind.
enum ck_block_type {
  CK_BLOCK_Q4_0 = 0,
  CK_BLOCK_Q4_1 = 1,
  CK_BLOCK_Q5_0 = 2,
  CK_BLOCK_Q5_1 = 3,
  CK_BLOCK_Q8_0 = 4,
  CK_BLOCK_Q4_K = 5,
  CK_BLOCK_Q5_K = 6,
  CK_BLOCK_Q6_K = 7,
};

/// Y = X W^T + bias with W in blocks.
///
/// Each run of 32 values of x is rounded to int8 with its own scale, s = max|x| / 127: an element is
/// off by at most s/2, so y by at most sum over runs of s/2 sum |w|. Products of integers are exact,
/// sums over runs float32. Levels without int8 dot products multiply many rows in float32, unrounded.
struct ck_block_product_args {
  long m, n, k;             // X [m, k], W [n, k], Y [m, n]; k whole blocks
  const float *x;
  const void *w;            // rows one after another, any alignment
  float *y;
  long ldx, ldy;            // elements between rows
  const float *bias;        // [n] or NULL
  enum ck_block_type type;
};

/// Rows of W as float32: out[i] = W[rows[i]], or W[i] where rows is NULL.
struct ck_block_unpack_args {
  long count, k;            // rows to unpack, values a row
  const void *w;
  const int32_t *rows;
  float *out;               // [count, k]
  enum ck_block_type type;
};

/// Results do not depend on the thread count.
struct ck_blocks_table {
  void (*product)(const struct ck_block_product_args *args);
  void (*unpack)(const struct ck_block_unpack_args *args);
};

bool ck_blocks_table_for(enum ck_level level, struct ck_blocks_table *out);

#ifdef __cplusplus
}
#endif
