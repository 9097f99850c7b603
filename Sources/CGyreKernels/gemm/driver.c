// The blocked product, portable: who packs what, in which order, on which thread.
//
// B is packed whole (in column chunks where it is large), in parallel; then row slivers of C are
// handed out, and each packs its own part of A, which stays in the first-level cache while a block
// of B of about half a megabyte passes by from the second. Sums over k run in a fixed order, blocks
// of `block_units`, so the partition over threads does not change a bit of the result.
#include "kernel.h"
#include "sizes.h"
#include <string.h>

enum {
  COLUMN_BLOCK = 512,           // columns of B that a sliver of A meets before the next sliver
  SLIVER_GROUP = 8,             // slivers that share a block of B before k moves on
  GROUP_PACK_K = 8,             // lines of A that a group's slivers read before the next ones
  PACKED_CHUNK = 8 << 20,       // bytes of packed B alive at once
  SMALL_PROBLEM = 32 * 32 * 32, // multiplications not worth a second thread
  PACK_GRAIN = 1 << 15,         // units of B worth handing to another thread
  IN_PLACE = 1 << 16,           // bytes of an operand that stays cached without being packed
};

struct plan {
  const struct ck_gemm_level *level;
  const struct ck_gemm_kernel *kernel;
  const struct ck_gemm_args *args;
  struct ck_gemm_view a, b;
  float *c32;                   // C where it is float32, else NULL
  char *c;
  const float *residual;
  long units;                   // padded units of k
  bool strided_a;               // A is read where it lies
  bool strided_b;               // B too, but for its last, partial panel
  uint32_t *packed;             // panels of B from column `column0` on
  long panel_units;             // 32-bit words between panels
  long column0, columns;        // the chunk of columns being multiplied
  long block_columns, slivers;
  bool needs_finish;
  bool streams;                 // C is larger than the caches and written once, in whole lines
};

static const struct ck_gemm_kernel *kernel_for(const struct ck_gemm_level *level,
                                               enum ck_gemm_compute compute) {
  if (compute == CK_GEMM_COMPUTE_BF16 && level->bf16) return level->bf16;
  return level->f32;
}

static bool rounds(const struct ck_gemm_level *level, enum ck_gemm_compute compute) {
  return compute == CK_GEMM_COMPUTE_BF16 && !level->bf16;
}

static long padded_units(const struct ck_gemm_kernel *kernel, long k) {
  return round_up(ceil_div(k, kernel->unit), kernel->step);
}

// Words of a panel or sliver that holds so much of k: whole steps.
static long panel_words(const struct ck_gemm_kernel *kernel, long k, long width) {
  return padded_units(kernel, k) * kernel->planes * width;
}

// Words of a panel or sliver for one block of k.
static long block_words(const struct ck_gemm_kernel *kernel, long width) {
  return kernel->block_units * kernel->planes * width;
}

static void pack_panels(const struct ck_gemm_kernel *kernel, const struct ck_gemm_view *view,
                        uint32_t *packed, long first, long last, long column0, long end, long k) {
  const long words = panel_words(kernel, k, kernel->nr);
  const long block = kernel->block_units * kernel->unit;
  for (long p = first; p < last; p++) {
    const long x = column0 + p * kernel->nr;
    for (long k0 = 0; k0 < k; k0 += block)
      kernel->pack_b(packed + p * words + panel_words(kernel, k0, kernel->nr), view, x,
                     min_long(kernel->nr, end - x), k0, min_long(block, k - k0));
  }
}

static void pack_body(void *context, long begin, long end) {
  const struct plan *p = context;
  pack_panels(p->kernel, &p->b, p->packed, begin, end, p->column0, p->column0 + p->columns,
              p->args->k);
}

static void finish_rows(const struct plan *p, const float *source, long source_stride, long row,
                        long rows, long column, long columns) {
  const struct ck_gemm_args *args = p->args;
  const struct ck_gemm_finish finish = {
      .source = source,
      .source_stride = source_stride,
      .rows = rows,
      .columns = columns,
      .c = p->c + (row * args->ldc + column) * ck_gemm_type_size(args->c_type),
      .ldc = args->ldc,
      .c_type = args->c_type,
      .beta = p->c32 && source == p->c32 + row * args->ldc + column ? 0 : args->beta,
      .bias = args->bias ? args->bias + column : NULL,
      .residual = p->residual ? p->residual + row * args->ldr + column : NULL,
      .ldr = args->ldr,
      .activation = args->activation,
  };
  p->level->rows->finish(&finish);
}

// One sliver of rows against `columns` columns of the current chunk, for one block of k.
static void multiply_sliver(const struct plan *p, struct ck_gemm_tile *t, long k0, long column,
                            long columns, float *out, long ld) {
  const struct ck_gemm_kernel *kernel = p->kernel;
  const long nr = kernel->nr;
  // A packed sliver has several rows in use; wide tiles pay only where rows are few.
  const int wide = p->strided_a || p->strided_b
                       ? (t->rows <= kernel->mr / 4 ? 4 : t->rows <= kernel->mr / 2 ? 2 : 1)
                       : 1;
  t->ldc = ld;
  t->a_unit_stride = p->strided_a ? p->a.k_stride : kernel->mr;
  t->a_row_stride = p->strided_a ? p->a.x_stride : 1;
  for (long j = 0; j < columns;) {
    const long left = columns - j;
    const long x = column + j;
    t->columns = (int)(left >= wide * nr ? wide * nr : left < nr ? left : nr);
    if (p->strided_b && left < nr && left > kernel->lanes && left % kernel->lanes == 0)
      t->columns = kernel->lanes;
    if (wide == 4 && left >= 2 * nr && left < 4 * nr) t->columns = (int)(2 * nr);
    t->c = out + j;
    if (p->strided_b && t->columns % kernel->lanes == 0) {
      t->b = (const uint32_t *)p->b.data + x + k0 * p->b.k_stride;
      t->b_row_stride = p->b.k_stride;
      t->b_panel_stride = nr;
      kernel->multiply_strided(t);
    } else {
      const long panel = p->strided_b ? 0 : (x - p->column0) / nr;
      t->b = p->packed + panel * p->panel_units + panel_words(kernel, k0, nr);
      t->b_row_stride = nr;
      t->b_panel_stride = p->panel_units;
      if (p->strided_a || p->strided_b) kernel->multiply_strided(t);
      else kernel->multiply(t);
    }
    j += t->columns;
  }
}

// Whether rows of A lie side by side and a sliver of them ends within cache lines: then the slivers of a
// group are packed together, a few lines of A at a time. One after the other they would fetch most lines
// twice, and lines a multiple of 4 KB apart not from the first cache. Tile products are so quick that
// touching a page for two lines counts too.
static bool packs_groups(const struct plan *p) {
  const struct ck_gemm_kernel *kernel = p->kernel;
  return !p->strided_a && p->a.x_stride == 1 && (kernel->mr % kernel->lanes != 0 || kernel->begin);
}

static void pack_group(const struct plan *p, const struct ck_gemm_view *a, uint32_t *slivers, long words, long first,
                       long last, long k0, long k_count) {
  const struct ck_gemm_kernel *kernel = p->kernel;
  const long step = round_up(GROUP_PACK_K, (long)kernel->step * kernel->unit), mr = kernel->mr;
  for (long k = 0; k < k_count; k += step)
    for (long s = first; s < last; s++)
      kernel->pack_a(slivers + (s - first) * words + panel_words(kernel, k, mr), a,
                     s * mr, min_long(mr, p->args->m - s * mr), k0 + k, min_long(step, k_count - k));
}

// Slivers [first, last) against one block of columns, all of k.
static void multiply_group(const struct plan *p, long first, long last, long column, long columns) {
  const struct ck_gemm_args *args = p->args;
  const struct ck_gemm_kernel *kernel = p->kernel;
  const long mr = kernel->mr, block = kernel->block_units * kernel->unit;
  const ck_scratch_mark mark = ck_scratch_begin();
  const bool together = packs_groups(p);
  const long words = block_words(kernel, mr);
  uint32_t *slivers = NULL;
  if (!p->strided_a) slivers = ck_scratch((size_t)((together ? last - first : 1) * words) * 4);
  float *sums = p->c32 ? NULL : ck_scratch((size_t)((last - first) * mr * columns) * 4);
  for (long k0 = 0; k0 < args->k; k0 += block) {
    const long k_count = min_long(block, args->k - k0);
    if (together) pack_group(p, &p->a, slivers, words, first, last, k0, k_count);
    for (long s = first; s < last; s++) {
      const long row = s * mr, rows = min_long(mr, args->m - row);
      struct ck_gemm_tile tile = {
          .units = padded_units(kernel, k_count),
          .rows = (int)rows,
          .alpha = args->alpha,
          .beta = k0 > 0 ? 1 : p->c32 ? args->beta : 0,
      };
      if (p->strided_a) {
        tile.a = (const uint32_t *)p->a.data + row * p->a.x_stride + k0 * p->a.k_stride;
      } else if (together) {
        tile.a = slivers + (s - first) * words;
      } else {
        kernel->pack_a(slivers, &p->a, row, rows, k0, k_count);
        tile.a = slivers;
      }
      float *out = p->c32 ? p->c32 + row * args->ldc + column : sums + (row - first * mr) * columns;
      const long ld = p->c32 ? args->ldc : columns;
      multiply_sliver(p, &tile, k0, column, columns, out, ld);
      if (p->needs_finish && k0 + k_count == args->k)
        finish_rows(p, out, ld, row, rows, column, columns);
    }
  }
  ck_scratch_end(mark);
}

#include "blocks.inc"

static void multiply_body(void *context, long begin, long end) {
  const struct plan *p = context;
  if (p->kernel->begin) p->kernel->begin();
  while (begin < end) {
    const long block = begin / p->slivers, first = begin % p->slivers;
    const long last = min_long(min_long(p->slivers, first + (end - begin)), first + SLIVER_GROUP);
    const long column = block * p->block_columns;
    const long columns = min_long(p->block_columns, p->columns - column);
    if (p->kernel->multiply_block) multiply_blocks(p, first, last, p->column0 + column, columns);
    else multiply_group(p, first, last, p->column0 + column, columns);
    begin += last - first;
  }
  if (p->kernel->end) p->kernel->end();
}

// Fewer columns a block where there are too few slivers to share out.
static long choose_block_columns(long slivers, long columns, long nr) {
  long block = min_long(COLUMN_BLOCK, round_up(columns, nr));
  const long wanted = 4L * ck_thread_count();
  while (slivers * ceil_div(columns, block) < wanted && block > 2 * nr && block > 64)
    block = round_up(block / 2, nr);
  return round_up(block, nr);
}

static void run_blocked(struct plan *p) {
  if (run_shares(p)) return;
  const struct ck_gemm_args *args = p->args;
  const struct ck_gemm_kernel *kernel = p->kernel;
  const long nr = kernel->nr;
  const bool is_small = (double)args->m * (double)args->n * (double)args->k <= SMALL_PROBLEM;
  p->slivers = ceil_div(args->m, kernel->mr);
  p->units = padded_units(kernel, args->k);
  p->streams = streams(p);
  p->panel_units = panel_words(kernel, args->k, nr);
  const ck_scratch_mark mark = ck_scratch_begin();
  long chunk = round_up(args->n, nr);
  if (args->packed_b) {
    p->packed = (uint32_t *)args->packed_b;
  } else if (p->strided_b) {
    const long partial = args->n % nr;
    if (partial % kernel->lanes) {
      p->packed = ck_scratch((size_t)p->panel_units * 4);
      pack_panels(kernel, &p->b, p->packed, 0, 1, args->n - partial, args->n, args->k);
    }
  } else {
    chunk = min_long(chunk, max_long(nr, PACKED_CHUNK / 4 / p->panel_units * nr));
    p->packed = ck_scratch((size_t)(chunk / nr * p->panel_units) * 4);
  }
  for (p->column0 = 0; p->column0 < args->n; p->column0 += chunk) {
    p->columns = min_long(chunk, args->n - p->column0);
    const long panels = ceil_div(p->columns, nr);
    if (!args->packed_b && !p->strided_b)
      ck_parallel_for(panels, is_small ? panels : max_long(1, PACK_GRAIN / p->panel_units), pack_body, p);
    p->block_columns = choose_block_columns(p->slivers, p->columns, nr);
    const long items = p->slivers * ceil_div(p->columns, p->block_columns);
    ck_parallel_for(items, is_small ? items : 1, multiply_body, p);
  }
  ck_scratch_end(mark);
}

struct dot_run {
  const struct plan *plan;
  const float *x;
  long x_rows, ldx;
  const void *w;
  long w_rows, ldw;
  int w_type;
  bool is_swapped;    // C^T is computed: rows of W are rows of C
};

// Rows of W [begin, end) in pieces: dot products into a small buffer, then the epilogue.
static void dot_body(void *context, long begin, long end) {
  const struct dot_run *run = context;
  const struct plan *p = run->plan;
  enum { PIECE = 64 };
  const ck_scratch_mark mark = ck_scratch_begin();
  float *buffer = ck_scratch((size_t)(PIECE * run->x_rows) * 4);
  for (long w0 = begin; w0 < end; w0 += PIECE) {
    const long count = min_long(PIECE, end - w0);
    const struct ck_gemm_dot dot = {
        .rows = run->x_rows,
        .columns = count,
        .k = p->args->k,
        .x = run->x,
        .ldx = run->ldx,
        .w = (const char *)run->w + w0 * run->ldw * ck_gemm_type_size(run->w_type),
        .ldw = run->ldw,
        .w_type = run->w_type,
        .y = buffer,
        .y_row_stride = run->is_swapped ? 1 : PIECE,
        .y_column_stride = run->is_swapped ? run->x_rows : 1,
        .alpha = p->args->alpha,
    };
    p->level->rows->dot(&dot);
    if (run->is_swapped) finish_rows(p, buffer, run->x_rows, w0, count, 0, run->x_rows);
    else finish_rows(p, buffer, PIECE, 0, run->x_rows, w0, count);
  }
  ck_scratch_end(mark);
}

// Few rows against a matrix whose rows run along k. False: the shape is not of that kind.
static bool run_dot(const struct plan *p) {
  const struct ck_gemm_args *args = p->args;
  if (args->packed_b || args->k < 8 || p->b.k_stride != 1) return false;
  // Adding lanes costs as much as some 64 products of k: short rows leave the path sooner. bfloat16
  // products are faster than these float32 ones once the rows are enough to be worth packing.
  const bool is_fast = p->kernel != p->level->f32;
  const long few = is_fast ? 8 : args->k >= 128 ? 24 : 8;
  const bool few_rows = args->m <= few;
  const bool few_columns = args->n <= (is_fast ? 8 : 16) && args->n < args->m && p->a.k_stride == 1;
  if (!few_rows && !(few_columns && (args->k >= 128 || args->n <= 4))) return false;
  struct dot_run run = {.plan = p, .is_swapped = !few_rows};
  const struct ck_gemm_view *x = few_rows ? &p->a : &p->b, *w = few_rows ? &p->b : &p->a;
  run.x_rows = few_rows ? args->m : args->n;
  run.w_rows = few_rows ? args->n : args->m;
  run.w = w->data;
  run.ldw = w->x_stride;
  run.w_type = w->type;
  const ck_scratch_mark mark = ck_scratch_begin();
  if (x->type == CK_GEMM_TYPE_F32 && x->k_stride == 1) {
    run.x = x->data;
    run.ldx = x->x_stride;
  } else {
    float *copy = ck_scratch((size_t)(run.x_rows * args->k) * 4);
    const char *source = x->data;
    const long size = ck_gemm_type_size(x->type);
    for (long i = 0; i < run.x_rows; i++) {
      if (x->k_stride == 1) {
        p->level->rows->to_f32(copy + i * args->k, source + i * x->x_stride * size, x->type, false, args->k);
      } else {
        for (long k = 0; k < args->k; k++)
          p->level->rows->to_f32(copy + i * args->k + k, source + (i * x->x_stride + k * x->k_stride) * size,
                           x->type, false, 1);
      }
    }
    run.x = copy;
    run.ldx = args->k;
  }
  // A second thread pays from about 64 KB of W on.
  const long row_bytes = args->k * ck_gemm_type_size(run.w_type) * ceil_div(run.x_rows, 2);
  const long grain = round_up(max_long(4, (1 << 15) / row_bytes), 4);
  ck_parallel_for(run.w_rows, grain, dot_body, &run);
  ck_scratch_end(mark);
  return true;
}

static struct ck_gemm_view view_of(const void *data, int type, long ld, long count, bool k_is_row,
                                   bool round_bf16) {
  return (struct ck_gemm_view){.data = data,
                               .type = type,
                               .x_count = count,
                               .x_stride = k_is_row ? 1 : ld,
                               .k_stride = k_is_row ? ld : 1,
                               .round_bf16 = round_bf16};
}

// C = activation(beta C + bias) + residual: nothing to multiply.
static void run_empty(const struct plan *p) {
  const struct ck_gemm_args *args = p->args;
  const ck_scratch_mark mark = ck_scratch_begin();
  float *zeros = ck_scratch((size_t)args->n * 4);
  memset(zeros, 0, (size_t)args->n * 4);
  finish_rows(p, zeros, 0, 0, args->m, 0, args->n);
  ck_scratch_end(mark);
}

// Epilogue of a part of C that lies in place.
static void finish_part(const void *context, long row, long rows, long column, long columns) {
  const struct plan *p = context;
  finish_rows(p, p->c32 + row * p->args->ldc + column, p->args->ldc, row, rows, column, columns);
}

static bool run_strassen(const struct plan *p) {
  const struct ck_gemm_args *args = p->args;
  if (p->kernel != p->level->f32 || p->a.round_bf16 || args->packed_b || !p->c32) return false;
  return ck_gemm_strassen_run(&(struct ck_gemm_strassen){
      .level = p->level,
      .a = p->a,
      .b = p->b,
      .m = args->m,
      .n = args->n,
      .k = args->k,
      .alpha = args->alpha,
      .beta = args->beta,
      .c = p->c32,
      .ldc = args->ldc,
      .finish = p->needs_finish ? finish_part : NULL,
      .context = p,
  });
}

// Whether float32 products are faster by way of bfloat16 parts: where many rows and columns share the packing
// that makes them.
static bool splits(const struct plan *p) {
  enum { ROWS = 256, COLUMNS = 256, DEPTH = 128 };
  const struct ck_gemm_args *args = p->args;
  return p->level->bf16x6 && p->kernel == p->level->f32 && !args->packed_b &&
         args->m >= ROWS && args->n >= COLUMNS && args->k >= DEPTH;
}

static void run_one(const struct ck_gemm_level *level, const struct ck_gemm_args *args, long index) {
  const bool round_bf16 = rounds(level, args->compute);
  struct plan p = {
      .level = level,
      .kernel = kernel_for(level, args->compute),
      .args = args,
      .a = view_of((const char *)args->a + index * args->a_stride * ck_gemm_type_size(args->a_type),
                   args->a_type, args->lda, args->m, args->transpose_a, round_bf16),
      .b = view_of((const char *)args->b + index * args->b_stride * ck_gemm_type_size(args->b_type),
                   args->b_type, args->ldb, args->n, !args->transpose_b, round_bf16),
      .c = (char *)args->c + index * args->c_stride * ck_gemm_type_size(args->c_type),
      .residual = args->residual ? args->residual + index * args->residual_stride : NULL,
  };
  // Partial sums live in C, unless that would destroy the residual.
  p.c32 = args->c_type == CK_GEMM_TYPE_F32 && p.residual != (float *)p.c ? (float *)p.c : NULL;
  if (ck_gemm_makes_sums(level, args)) p.a.sums = args->a_sums;
  p.needs_finish = !p.c32 || args->bias || p.residual || args->activation;
  if (args->k <= 0 || args->alpha == 0) {
    run_empty(&p);
    return;
  }
  // A single column that is contiguous runs along k as a transposed row does.
  if (args->n == 1 && p.b.k_stride == 1) p.b.x_stride = args->k;
  if (args->m == 1 && p.a.k_stride != 1 && args->lda == 1) p.a.k_stride = 1, p.a.x_stride = args->k;
  if (run_dot(&p)) return;
  if (splits(&p)) p.kernel = level->bf16x6;
  if (run_strassen(&p)) return;
  // Reading operands where they lie beats packing where packing would be read few times; rows a
  // multiple of 2 KB apart fight for the same cache sets.
  const struct ck_gemm_kernel *kernel = p.kernel;
  if (kernel == level->f32 && !round_bf16) {
    const bool crowded_a = args->lda % 512 == 0 && args->m > 4;
    const bool crowded_b = args->ldb % 512 == 0;
    const long b_bytes = args->k * args->n * 4, a_bytes = args->k * args->m * 4;
    p.strided_b = !args->packed_b && args->b_type == CK_GEMM_TYPE_F32 && p.b.x_stride == 1 &&
                  (args->m <= 3 * kernel->mr || (b_bytes <= IN_PLACE && !crowded_b));
    p.strided_a = args->a_type == CK_GEMM_TYPE_F32 && !crowded_a &&
                  (args->n <= 2 * kernel->nr || (p.strided_b && a_bytes <= IN_PLACE));
  }
  run_blocked(&p);
}

bool ck_gemm_makes_sums(const struct ck_gemm_level *level, const struct ck_gemm_args *args) {
  enum { LEAST = 32 };  // rows and columns of C, and k, from which A is packed
  return kernel_for(level, args->compute)->sums_a && args->a_type == CK_GEMM_TYPE_BF16 && args->transpose_a &&
         args->batch == 1 && args->alpha == 1 && args->m >= LEAST && args->n >= LEAST && args->k >= LEAST;
}

struct batch_run {
  const struct ck_gemm_level *level;
  const struct ck_gemm_args *args;
};

static void batch_body(void *context, long begin, long end) {
  const struct batch_run *run = context;
  for (long i = begin; i < end; i++) run_one(run->level, run->args, i);
}

void ck_gemm_run(const struct ck_gemm_level *level, const struct ck_gemm_args *args) {
  if (args->m <= 0 || args->n <= 0 || args->batch <= 0) return;
  struct ck_gemm_args folded = *args;
  // Matrices that follow each other and share B are one tall matrix.
  if (args->batch > 1 && (args->b_stride == 0 || args->packed_b) && !args->transpose_a &&
      args->a_stride == args->m * args->lda && args->c_stride == args->m * args->ldc &&
      (!args->residual || args->residual_stride == args->m * args->ldr)) {
    folded.m *= args->batch;
    folded.batch = 1;
  }
  const struct batch_run run = {level, &folded};
  const double work = (double)folded.m * (double)folded.n * (double)folded.k;
  const bool is_wide = folded.batch >= 2L * ck_thread_count() || work < 128.0 * 128 * 128;
  if (folded.batch > 1 && is_wide) {
    const long grain = work < SMALL_PROBLEM ? (long)(SMALL_PROBLEM / (work + 1)) + 1 : 1;
    ck_parallel_for(folded.batch, grain, batch_body, (void *)&run);
  } else {
    batch_body((void *)&run, 0, folded.batch);
  }
}

size_t ck_gemm_packed_bytes(const struct ck_gemm_level *level, long k, long n,
                            enum ck_gemm_compute compute) {
  const struct ck_gemm_kernel *kernel = kernel_for(level, compute);
  return (size_t)(ceil_div(n, kernel->nr) * panel_words(kernel, k, kernel->nr)) * 4;
}

void ck_gemm_pack_run(const struct ck_gemm_level *level, const struct ck_pack_b_args *args) {
  if (args->k <= 0 || args->n <= 0) return;
  const struct ck_gemm_args shape = {.k = args->k, .n = args->n};
  struct plan p = {
      .level = level,
      .kernel = kernel_for(level, args->compute),
      .args = &shape,
      .b = view_of(args->b, args->b_type, args->ldb, args->n, !args->transpose_b,
                   rounds(level, args->compute)),
      .packed = args->packed,
      .columns = args->n,
  };
  p.panel_units = panel_words(p.kernel, args->k, p.kernel->nr);
  ck_parallel_for(ceil_div(args->n, p.kernel->nr), max_long(1, PACK_GRAIN / p.panel_units), pack_body,
                  &p);
}

void ck_gemm_packed_run(const struct ck_gemm_level *level, const struct ck_gemm_packed_args *args) {
  if (args->m <= 0 || args->n_end <= args->n_begin) return;
  const bool round_bf16 = rounds(level, args->compute);
  const struct ck_gemm_args shape = {
      .m = args->m, .n = args->n, .k = args->k, .alpha = 1, .beta = args->beta,
      .c = args->c, .ldc = args->ldc, .bias = args->bias,
  };
  struct plan p = {
      .level = level,
      .kernel = kernel_for(level, args->compute),
      .args = &shape,
      .a = view_of(args->a, CK_GEMM_TYPE_F32, args->lda, args->m, false, round_bf16),
      .c32 = args->c,
      .c = (char *)args->c,
      .packed = (uint32_t *)args->packed_b,
      .needs_finish = args->bias != NULL,
      .columns = args->n,
  };
  if (args->k <= 0) {
    const ck_scratch_mark mark = ck_scratch_begin();
    float *zeros = ck_scratch((size_t)args->n * 4);
    memset(zeros, 0, (size_t)args->n * 4);
    finish_rows(&p, zeros, 0, 0, args->m, args->n_begin, args->n_end - args->n_begin);
    ck_scratch_end(mark);
    return;
  }
  p.panel_units = panel_words(p.kernel, args->k, p.kernel->nr);
  p.slivers = ceil_div(args->m, p.kernel->mr);
  // Rows that crowd the same cache sets are packed; few rows are read where they lie.
  p.strided_a = p.kernel == level->f32 && !round_bf16 &&
                (args->m <= p.kernel->mr / 2 || args->lda % 512 != 0);
  if (p.kernel->begin) p.kernel->begin();
  for (long first = 0; first < p.slivers; first += SLIVER_GROUP) {
    const long last = min_long(p.slivers, first + SLIVER_GROUP);
    (p.kernel->multiply_block ? multiply_blocks : multiply_group)(&p, first, last, args->n_begin,
                                                                  args->n_end - args->n_begin);
  }
  if (p.kernel->end) p.kernel->end();
}
