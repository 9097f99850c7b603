// What the portable driver asks of a level.
#pragma once
#include "ck_blocks.h"

/// Rows of x as int8 with a scale for each run of 32 values.
struct ck_blocks_rows {
  long runs;              // k / 32
  int8_t *q;              // [rows][runs][32]
  float *d;               // [rows][runs] scale
  float *s;               // [rows][runs] scale times sum of q: what a minimum is multiplied with
  int32_t *shift;         // [rows][runs][8] minus zero times the sums of four; unread for zero 0
};

struct ck_blocks_level {
  enum ck_level level;
  long few_rows;          // up to so many rows are multiplied one by one
  /// Rounds `count` rows of x.
  void (*quantize)(const struct ck_blocks_rows *out, const struct ck_block_product_args *args,
                   long first, long count);
  /// Rows of W [begin, end) times all rows of x.
  void (*dot)(const struct ck_block_product_args *args, const struct ck_blocks_rows *x, long begin,
              long end);
  /// The same for many rows, in tiles of 32 rows of W; NULL: the driver unpacks W.
  void (*tiles)(const struct ck_block_product_args *args, const struct ck_blocks_rows *x, long begin,
                long end);
  void (*unpack)(enum ck_block_type type, const uint8_t *w, float *out, long k);
};

enum { CK_BLOCKS_TILE = 32 };

long ck_block_row_bytes(enum ck_block_type type, long k);
void ck_blocks_product_run(const struct ck_blocks_level *level,
                           const struct ck_block_product_args *args);
void ck_blocks_unpack_run(const struct ck_blocks_level *level,
                          const struct ck_block_unpack_args *args);

extern const struct ck_blocks_level ck_blocks_level_generic;
#if defined(__x86_64__)
extern const struct ck_blocks_level ck_blocks_level_avx2;
extern const struct ck_blocks_level ck_blocks_level_avx512bf16;
#elif defined(__aarch64__)
extern const struct ck_blocks_level ck_blocks_level_neon;
#endif
