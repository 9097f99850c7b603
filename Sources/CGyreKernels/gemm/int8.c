// int8 products with exact int32 sums. Kernels that take bytes multiply s8 or u8 by s8; elsewhere
// float32 kernels do: 1024 products of int8 stay below 2^24, where float32 is exact.
#include "kernel.h"
#include "sizes.h"
#include <string.h>

enum { EXACT_K = 1024, COLUMN_BLOCK = 512 };

struct s8_plan {
  const struct ck_gemm_kernel *kernel;
  const struct ck_gemm_s8s8s32_args *args;
  struct ck_gemm_view a, b;
  int32_t *c;
  bool in_float;
  long block;               // elements of k in a pass
  uint32_t *packed;         // [k blocks][panels][units of a block][nr]
  int32_t *column_terms;    // what unsigned A adds to a column: 128 times its sum
  long panels, slivers, panel_words, block_columns;
};

static long units_of(const struct ck_gemm_kernel *kernel, long k) {
  return ceil_div(ceil_div(k, kernel->unit), kernel->step) * kernel->step;
}

static void pack_body(void *context, long begin, long end) {
  const struct s8_plan *p = context;
  const struct ck_gemm_kernel *kernel = p->kernel;
  const long nr = kernel->nr, k = p->args->k;
  for (long panel = begin; panel < end; panel++) {
    const long x = panel * nr, count = min_long(nr, p->args->n - x);
    int32_t *terms = p->column_terms ? p->column_terms + x : NULL;
    if (terms) memset(terms, 0, (size_t)nr * sizeof *terms);
    for (long k0 = 0; k0 < k; k0 += p->block) {
      const long part = min_long(p->block, k - k0);
      uint32_t *to = p->packed + (k0 / p->block * p->panels + panel) * p->panel_words;
      kernel->pack_b(to, &p->b, x, count, k0, part);
      if (!terms) continue;
      const int8_t *bytes = (const int8_t *)to;
      for (long u = 0; u < units_of(kernel, part); u++)
        for (long j = 0; j < nr; j++)
          for (int i = 0; i < 4; i++) terms[j] += 128 * bytes[(u * nr + j) * 4 + i];
    }
  }
}

static void add_tile(const struct s8_plan *p, const void *tile, const int32_t *terms, int32_t *c,
                     long rows, long columns, bool accumulate) {
  const long nr = p->kernel->nr;
  for (long r = 0; r < rows; r++) {
    for (long j = 0; j < columns; j++) {
      uint32_t value = p->in_float ? (uint32_t)(int32_t)((const float *)tile)[r * nr + j]
                                   : (uint32_t)((const int32_t *)tile)[r * nr + j];
      if (terms) value -= (uint32_t)terms[j];
      if (accumulate) value += (uint32_t)c[r * p->args->ldc + j];
      c[r * p->args->ldc + j] = (int32_t)value;
    }
  }
}

static void multiply_body(void *context, long begin, long end) {
  const struct s8_plan *p = context;
  const struct ck_gemm_kernel *kernel = p->kernel;
  const long mr = kernel->mr, nr = kernel->nr, k = p->args->k;
  const ck_scratch_mark mark = ck_scratch_begin();
  uint32_t *sliver = ck_scratch((size_t)(units_of(kernel, p->block) * mr) * 4);
  uint32_t *sums = ck_scratch((size_t)(mr * nr) * 4);
  if (kernel->begin) kernel->begin();
  for (long item = begin; item < end; item++) {
    const long row = item % p->slivers * mr, rows = min_long(mr, p->args->m - row);
    const long first = item / p->slivers * p->block_columns;
    const long last = min_long(p->args->n, first + p->block_columns);
    for (long k0 = 0; k0 < k; k0 += p->block) {
      const long part = min_long(p->block, k - k0);
      kernel->pack_a(sliver, &p->a, row, rows, k0, part);
      for (long x = first; x < last; x += nr) {
        const long columns = min_long(nr, last - x);
        const struct ck_gemm_tile tile = {
            .units = units_of(kernel, part),
            .rows = (int)rows,
            .columns = (int)nr,
            .a = sliver,
            .b = p->packed + (k0 / p->block * p->panels + x / nr) * p->panel_words,
            .c = sums,
            .ldc = nr,
            .alpha = 1,
        };
        kernel->multiply(&tile);
        add_tile(p, sums, p->column_terms && k0 == 0 ? p->column_terms + x : NULL,
                 p->c + row * p->args->ldc + x, rows, columns, k0 > 0 || p->args->accumulate);
      }
    }
  }
  if (kernel->end) kernel->end();
  ck_scratch_end(mark);
}

static void run_one(const struct ck_gemm_level *level, const struct ck_gemm_s8s8s32_args *args,
                    long index) {
  struct s8_plan p = {
      .kernel = level->s8 ? level->s8 : level->f32,
      .args = args,
      .a = {.data = args->a + index * args->a_stride, .type = CK_GEMM_TYPE_S8, .x_count = args->m,
            .x_stride = args->transpose_a ? 1 : args->lda,
            .k_stride = args->transpose_a ? args->lda : 1},
      .b = {.data = args->b + index * args->b_stride, .type = CK_GEMM_TYPE_S8, .x_count = args->n,
            .x_stride = args->transpose_b ? args->ldb : 1,
            .k_stride = args->transpose_b ? 1 : args->ldb},
      .c = args->c + index * args->c_stride,
      .in_float = !level->s8,
  };
  if (args->k <= 0) {
    for (long r = 0; r < args->m && !args->accumulate; r++)
      memset(p.c + r * args->ldc, 0, (size_t)args->n * sizeof *p.c);
    return;
  }
  p.block = min_long(p.in_float ? EXACT_K : p.kernel->block_units * p.kernel->unit,
                     units_of(p.kernel, args->k) * p.kernel->unit);
  p.panels = ceil_div(args->n, p.kernel->nr);
  p.slivers = ceil_div(args->m, p.kernel->mr);
  p.panel_words = units_of(p.kernel, p.block) * p.kernel->nr;
  p.block_columns = min_long(COLUMN_BLOCK, p.panels * p.kernel->nr);
  if (p.slivers < 4L * ck_thread_count())
    p.block_columns = ceil_div(min_long(64, p.block_columns), p.kernel->nr) * p.kernel->nr;
  p.block_columns = ceil_div(p.block_columns, p.kernel->nr) * p.kernel->nr;
  const ck_scratch_mark mark = ck_scratch_begin();
  const long k_blocks = ceil_div(args->k, p.block);
  p.packed = ck_scratch((size_t)(k_blocks * p.panels * p.panel_words) * 4);
  if (level->s8 && level->s8_unsigned_a)
    p.column_terms = ck_scratch((size_t)(p.panels * p.kernel->nr) * sizeof(int32_t));
  const bool is_small = (double)args->m * (double)args->n * (double)args->k < 64.0 * 64 * 64;
  ck_parallel_for(p.panels, is_small ? p.panels : 1, pack_body, &p);
  const long items = p.slivers * ceil_div(args->n, p.block_columns);
  ck_parallel_for(items, is_small ? items : 1, multiply_body, &p);
  ck_scratch_end(mark);
}

struct s8_batch {
  const struct ck_gemm_level *level;
  const struct ck_gemm_s8s8s32_args *args;
};

static void batch_body(void *context, long begin, long end) {
  const struct s8_batch *batch = context;
  for (long i = begin; i < end; i++) run_one(batch->level, batch->args, i);
}

void ck_gemm_s8_run(const struct ck_gemm_level *level, const struct ck_gemm_s8s8s32_args *args) {
  if (args->m <= 0 || args->n <= 0 || args->batch <= 0) return;
  struct s8_batch batch = {level, args};
  if (args->batch >= 2L * ck_thread_count())
    ck_parallel_for(args->batch, 1, batch_body, &batch);
  else
    batch_body(&batch, 0, args->batch);
}
