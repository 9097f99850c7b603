// Who multiplies which rows on which thread; portable.
#include "ck_gemm.h"
#include "../common/ahead.h"
#include "kernel.h"

enum {
  GRAIN_BYTES = 1 << 14,   // of W that are worth a second thread
  UNPACKED = 1 << 19,      // float32 values of W alive at once
  QUANTIZE_GRAIN = 1 << 14 // values of x that are worth a second thread
};

static long min_long(long a, long b) { return a < b ? a : b; }
static long max_long(long a, long b) { return a > b ? a : b; }

long ck_block_row_bytes(enum ck_block_type type, long k) {
  switch (type) {
  case CK_BLOCK_Q4_0: return k / 32 * 18;
  case CK_BLOCK_Q4_1: return k / 32 * 20;
  case CK_BLOCK_Q5_0: return k / 32 * 22;
  case CK_BLOCK_Q5_1: return k / 32 * 24;
  case CK_BLOCK_Q8_0: return k / 32 * 34;
  case CK_BLOCK_Q4_K: return k / 256 * 144;
  case CK_BLOCK_Q5_K: return k / 256 * 176;
  case CK_BLOCK_Q6_K: return k / 256 * 210;
  }
  return 0;
}

struct run {
  const struct ck_blocks_level *level;
  const struct ck_block_product_args *args;
  const struct ck_block_unpack_args *unpack;
  struct ck_blocks_rows x;
  float *unpacked;
  long first;
};

static void quantize_body(void *context, long begin, long end) {
  const struct run *r = context;
  r->level->quantize(&r->x, r->args, begin, end - begin);
}

static void dot_body(void *context, long begin, long end) {
  const struct run *r = context;
  r->level->dot(r->args, &r->x, begin, end);
}

static void tiles_body(void *context, long begin, long end) {
  const struct run *r = context;
  r->level->tiles(r->args, &r->x, begin * CK_BLOCKS_TILE,
                  min_long(end * CK_BLOCKS_TILE, r->args->n));
}

static void unpack_body(void *context, long begin, long end) {
  const struct run *r = context;
  const struct ck_block_unpack_args *u = r->unpack;
  const long bytes = ck_block_row_bytes(u->type, u->k);
  for (long i = begin; i < end; i++) {
    const long row = u->rows ? u->rows[i] : i;
    r->level->unpack(u->type, (const uint8_t *)u->w + row * bytes, u->out + i * u->k, u->k);
  }
}

void ck_blocks_unpack_run(const struct ck_blocks_level *level,
                          const struct ck_block_unpack_args *args) {
  struct run run = {.level = level, .unpack = args};
  ck_parallel_for(args->count, max_long(1, QUANTIZE_GRAIN / max_long(args->k, 1)), unpack_body,
                  &run);
}

// W in float32 a few rows at a time, for the level's float32 product.
static void run_unpacked(const struct ck_blocks_level *level,
                         const struct ck_block_product_args *args) {
  struct ck_gemm_table table;
  if (!ck_gemm_table_for(level->level, &table)) return;
  const long chunk = max_long(1, min_long(args->n, UNPACKED / max_long(args->k, 1)));
  const long bytes = ck_block_row_bytes(args->type, args->k);
  const ck_scratch_mark mark = ck_scratch_begin();
  float *w = ck_scratch((size_t)(chunk * args->k) * sizeof(float));
  for (long n = 0; n < args->n; n += chunk) {
    const long count = min_long(chunk, args->n - n);
    const struct ck_block_unpack_args unpack = {
        .count = count,
        .k = args->k,
        .w = (const char *)args->w + n * bytes,
        .out = w,
        .type = args->type,
    };
    ck_blocks_unpack_run(level, &unpack);
    const struct ck_gemm_args product = {
        .m = args->m, .n = count, .k = args->k, .batch = 1, .alpha = 1,
        .a = args->x, .b = w, .c = args->y + n,
        .lda = args->ldx, .ldb = args->k, .ldc = args->ldy,
        .transpose_b = true,
        .bias = args->bias ? args->bias + n : NULL,
    };
    table.gemm(&product);
  }
  ck_scratch_end(mark);
}

void ck_blocks_product_run(const struct ck_blocks_level *level,
                           const struct ck_block_product_args *args) {
  if (args->m <= 0 || args->n <= 0) return;
  const bool is_few = args->m <= level->few_rows;
  if (!is_few && !level->tiles) {
    run_unpacked(level, args);
    return;
  }
  const long runs = args->k / 32;
  const ck_scratch_mark mark = ck_scratch_begin();
  const size_t count = (size_t)(args->m * runs);
  struct run run = {
      .level = level,
      .args = args,
      .x = {.runs = runs,
            .q = ck_scratch(count * 32 + 64),
            .d = ck_scratch(count * sizeof(float) + 64),
            .s = ck_scratch(count * sizeof(float) + 64),
            .shift = ck_scratch(count * 8 * sizeof(int32_t) + 64)},
  };
  ck_parallel_for(args->m, max_long(1, QUANTIZE_GRAIN / max_long(args->k, 1)), quantize_body, &run);
  if (is_few) {
    const long bytes = max_long(1, ck_block_row_bytes(args->type, args->k));
    ck_parallel_for(args->n, max_long(1, GRAIN_BYTES / bytes / args->m), dot_body, &run);
    ck_read_ahead_of(args->w, (size_t)(args->n * bytes));
  } else {
    ck_parallel_for((args->n + CK_BLOCKS_TILE - 1) / CK_BLOCKS_TILE, 1, tiles_body, &run);
  }
  ck_scratch_end(mark);
}
