// Large float32 products by Strassen's scheme: 7 products of half the size instead of 8, or 49 of a
// quarter instead of 64 (Strassen 1969; blocked as in Huang, Smith, Henry, van de Geijn, "Strassen's
// algorithm reloaded", 2016).
//
// C is cut into blocks that stay in the second cache, k into parts. For the parts of A and B that meet
// in such a block, all sums are formed from packed panels, once for many blocks; each tile product is
// added to up to four tiles of the block. Rows of A and columns of B are scaled by powers of two to a
// largest element of about one before sums mix them and C is scaled back: what a row loses in rounding is
// of that row's own size, as in the classical product. Blocks are cut by shape only and every element's
// terms have one order, so the bits do not depend on the number of threads.
#include "kernel.h"
#include "sizes.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 16, PAD = 80, MAX_EXPONENT = 96 };

struct run {
  const struct ck_gemm_strassen *product;
  const struct ck_gemm_kernel *kernel;
  const struct ck_gemm_fast *fast;
  int levels, split, products;
  long units;                            // of k in a part
  long part_m, part_n;                   // rows and columns of a part
  long slivers, panels;                  // of a part
  long a_stride, b_stride;               // floats between products of a block
  long a_block, b_block;                 // floats of a block
  long period_a, period_b;
  long blocks_m, blocks_n, blocks_k;
  long chunk;                            // blocks of columns whose sums a thread keeps
  long kb;                               // the block of k being worked on
  pthread_t caller;
  struct range *ranges;
  int range_count;
  atomic_int others;
  atomic_bool spoilt;                    // a number that is not finite: the classical product decides
};

// Items that one thread begins with and others help to finish.
struct range {
  _Alignas(64) atomic_long next;
  long end;
};

// What a thread has formed. Nothing of it is shared: lines that another processor has cached cost more to
// overwrite than sums cost to form.
struct worker {
  float *a, *b, *sums;
  float *row_scale, *column_scale;       // to scale C back
  long chunk;                            // the one in `b`
};

static long gcd(long a, long b) { return b ? gcd(b, a % b) : a; }

// One operand's side of the scheme.
struct side {
  const struct ck_gemm_view *view;
  void (*pack)(uint32_t *panel, const struct ck_gemm_view *view, long x, long count, long k0, long k_count);
  bool is_a;
  long width, part, positions, period;  // of a panel; of a part: rows or columns, panels
  float *out;
  long out_stride;
  float *back;                          // what undoes the scaling
};

// Factors that bring the largest number of each place to about one, and back.
static void choose_scale(struct run *r, const struct side *s, const uint32_t *largest, float *scale, float *back) {
  for (long w = 0; w < s->width; w++) {
    uint32_t most = 0;
    for (long at = w; at < s->period; at += s->width)
      if (largest[at] > most) most = largest[at];
    if (most >= 0x7F800000u) atomic_store_explicit(&r->spoilt, true, memory_order_relaxed);
    long exponent = most ? (long)(most >> 23) - 127 : 0;
    exponent = max_long(-MAX_EXPONENT, min_long(MAX_EXPONENT, exponent));
    const uint32_t up = (uint32_t)(127 - exponent) << 23, down = (uint32_t)(127 + exponent) << 23;
    for (long at = w; at < s->period; at += s->width) memcpy(&scale[at], &up, 4);
    memcpy(&back[w], &down, 4);
  }
}

// Panels [first, last) of all parts of a block become the panels of all products. Where rows of A lie
// side by side, a few lines of k are packed for all of them: their panels end within cache lines.
static void form_panels(struct run *r, const struct side *s, long block, long first, long last) {
  const struct ck_gemm_strassen *p = r->product;
  const int split = r->split;
  const long floats = r->units * s->width, stride = floats + PAD, step = last - first > 1 ? 8 : r->units;
  const ck_scratch_mark mark = ck_scratch_begin();
  float *raw = ck_scratch((size_t)((last - first) * split * split * stride) * 4);
  float *scale = ck_scratch((size_t)(split * s->period) * 4);
  uint32_t *largest = ck_scratch((size_t)s->period * 4);
  for (int i = 0; i < split; i++)
    for (int j = 0; j < split; j++) {
      const long k0 = (r->kb * split + j) * r->units, k_count = max_long(0, min_long(r->units, p->k - k0));
      for (long k = 0; k < r->units; k += step)
        for (long at = first; at < last; at++) {
          const long x = (block * split + i) * s->part + at * s->width;
          const long count = min_long(min_long(s->width, s->part - at * s->width), s->view->x_count - x);
          float *to = raw + ((at - first) * split * split + (s->is_a ? i * split + j : j * split + i)) * stride + k * s->width;
          const long have = count > 0 ? max_long(0, min_long(step, k_count - k)) : 0;
          if (have > 0) s->pack((uint32_t *)to, s->view, x, count, k0 + k, have);
          if (have < step) memset(to + have * s->width, 0, (size_t)((min_long(step, r->units - k) - have) * s->width) * 4);
        }
    }
  for (long at = first; at < last; at++) {
    const float *blocks = raw + (at - first) * split * split * stride;
    for (int i = 0; i < split; i++) {
      memset(largest, 0, (size_t)s->period * 4);
      for (int j = 0; j < split; j++)
        r->fast->largest(blocks + (s->is_a ? i * split + j : j * split + i) * stride, floats, s->period, largest);
      choose_scale(r, s, largest, scale + i * s->period,
                   s->back + (i * s->positions + at) * s->width);
    }
    r->fast->form(&(struct ck_gemm_sums){
        .is_a = s->is_a,
        .levels = r->levels,
        .blocks = blocks,
        .block_stride = stride,
        .count = floats,
        .scale = scale,
        .period = s->period,
        .out = s->out + at * floats,
        .out_stride = s->out_stride,
    });
  }
  ck_scratch_end(mark);
}

// Where tile products of one level go: blocks 00, 01, 10, 11 of C.
static const struct {
  signed char block[2], sign[2];  // sign 0: one block
} targets[7] = {{{0, 3}, {1, 1}}, {{2, 3}, {1, -1}}, {{1, 3}, {1, 1}}, {{0, 2}, {1, 1}},
                {{1, 0}, {1, -1}}, {{3, 0}, {1, 0}}, {{0, 0}, {1, 0}}};

// The blocks of C that product `index` is added to, with signs; their number.
static int targets_of(const struct run *r, int index, int row[4], int column[4], float sign[4]) {
  const int outer = r->levels == 2 ? index / 7 : -1, inner = index % 7;
  int count = 0;
  for (int o = 0; o < 2; o++) {
    if (outer < 0 ? o > 0 : targets[outer].sign[o] == 0) continue;
    for (int i = 0; i < 2; i++) {
      if (targets[inner].sign[i] == 0) continue;
      const int at = targets[inner].block[i], above = outer < 0 ? 0 : targets[outer].block[o];
      row[count] = above / 2 * 2 + at / 2;
      column[count] = above % 2 * 2 + at % 2;
      sign[count] = (float)(targets[inner].sign[i] * (outer < 0 ? 1 : targets[outer].sign[o]));
      count++;
    }
  }
  return count;
}

// One block of C.
static void multiply_block(const struct run *r, const struct worker *w, long bm, long bn) {
  const struct ck_gemm_strassen *p = r->product;
  const long nr = r->kernel->nr, mr = r->kernel->mr, split = r->split;
  const long part_columns = r->panels * nr, ld = split * part_columns + LANES;
  const long place = bn - w->chunk * r->chunk;
  const float *a = w->a, *b = w->b + place * r->b_block;
  float *sums = w->sums;
  memset(sums, 0, (size_t)(split * r->part_m * ld) * 4);
  for (int index = 0; index < r->products; index++) {
    int row[4], column[4];
    struct ck_gemm_spread spread = {
        .units = r->units,
        .panels = r->panels,
        .b = (const uint32_t *)(b + index * r->b_stride),
        .ldc = ld,
    };
    spread.targets = targets_of(r, index, row, column, spread.sign);
    for (long s = 0; s < r->slivers; s++) {
      spread.a = (const uint32_t *)(a + index * r->a_stride + s * r->units * mr);
      spread.rows = (int)min_long(mr, r->part_m - s * mr);
      for (int t = 0; t < spread.targets; t++)
        spread.target[t] = sums + (row[t] * r->part_m + s * mr) * ld + column[t] * part_columns;
      const char *next_a = (const char *)(a + (index + 1) * r->a_stride);
      const char *next_b = (const char *)(spread.b + r->b_stride);
      spread.ahead = s == 0 ? next_a : next_b + (s - 1) * (r->panels * r->units * nr * 4 / max_long(1, r->slivers - 1));
      r->fast->spread(&spread);
    }
  }
  for (long i = 0; i < split; i++) {
    const long row0 = (bm * split + i) * r->part_m, rows = min_long(r->part_m, p->m - row0);
    for (long j = 0; j < split && rows > 0; j++) {
      const long column0 = (bn * split + j) * r->part_n, columns = min_long(r->part_n, p->n - column0);
      if (columns <= 0) break;
      const struct ck_gemm_deliver deliver = {
          .source = sums + i * r->part_m * ld + j * part_columns,
          .source_stride = ld,
          .factor = p->alpha,
          .row_scale = w->row_scale + i * r->slivers * mr,
          .column_scale = w->column_scale + (place * split + j) * part_columns,
          .rows = rows,
          .columns = columns,
          .c = p->c + row0 * p->ldc + column0,
          .ldc = p->ldc,
          .beta = r->kb > 0 ? 1 : p->beta,
      };
      r->fast->deliver(&deliver);
      if (p->finish && r->kb + 1 == r->blocks_k) p->finish(p->context, row0, rows, column0, columns);
    }
  }
}

static void form_rows(struct run *r, const struct worker *w, long block) {
  const struct ck_gemm_strassen *p = r->product;
  const struct side s = {&p->a, r->kernel->pack_a, true, r->kernel->mr, r->part_m, r->slivers, r->period_a,
                         w->a, r->a_stride, w->row_scale};
  const long step = p->a.x_stride == 1 ? r->slivers : 1;
  for (long i = 0; i < r->slivers; i += step) form_panels(r, &s, block, i, i + step);
}

static void form_columns(struct run *r, struct worker *w, long chunk) {
  const struct ck_gemm_strassen *p = r->product;
  const long first = chunk * r->chunk, last = min_long(r->blocks_n, first + r->chunk);
  for (long block = first; block < last; block++) {
    const struct side s = {&p->b, r->kernel->pack_b, false, r->kernel->nr, r->part_n, r->panels, r->period_b,
                           w->b + (block - first) * r->b_block, r->b_stride,
                           w->column_scale + (block - first) * r->split * r->part_n};
    for (long i = 0; i < r->panels; i++) form_panels(r, &s, block, i, i + 1);
  }
  w->chunk = chunk;
}

static void *floats(long count) { return ck_scratch((size_t)count * sizeof(float)); }

// One thread: its own items, then those that others have not begun. An item is a block of rows and a chunk
// of columns.
static void multiply_body(void *context, long begin, long end) {
  struct run *r = context;
  (void)begin, (void)end;
  // The caller has the same items for every block of k; so mostly have the others.
  const int own = pthread_equal(r->caller, pthread_self()) ? 0 : 1 + atomic_fetch_add(&r->others, 1);
  const long columns = r->split * r->panels * r->kernel->nr;
  const ck_scratch_mark mark = ck_scratch_begin();
  struct worker w = {
      .a = floats(r->a_block),
      .b = floats(r->chunk * r->b_block),
      .sums = floats(r->split * r->part_m * (columns + LANES)),
      .row_scale = floats(r->split * r->slivers * r->kernel->mr),
      .column_scale = floats(r->chunk * columns),
      .chunk = -1,
  };
  for (int i = 0; i < r->range_count; i++) {
    struct range *range = &r->ranges[(own + i) % r->range_count];
    for (;;) {
      if (atomic_load_explicit(&r->spoilt, memory_order_relaxed)) break;
      const long item = atomic_fetch_add_explicit(&range->next, 1, memory_order_relaxed);
      if (item >= range->end) break;
      const long chunk = item / r->blocks_m, block = item % r->blocks_m;
      if (w.chunk != chunk) form_columns(r, &w, chunk);
      form_rows(r, &w, block);
      for (long bn = chunk * r->chunk; bn < min_long(r->blocks_n, (chunk + 1) * r->chunk); bn++)
        multiply_block(r, &w, block, bn);
    }
  }
  ck_scratch_end(mark);
}

// Rows of a part: blocks near `wanted` rows whose last slivers are not too thin to be worth their loads.
static long choose_part(long m, long wanted, int split, long mr) {
  const long middle = max_long(1, (m + wanted / 2) / wanted);
  long best = 0, best_cost = 0;
  for (long blocks = max_long(1, middle - middle / 4); blocks <= middle + middle / 4; blocks++) {
    const long part = ceil_div(ceil_div(m, blocks), split), rest = part % mr;
    const long cost = ceil_div(m, part * split) * (part / mr * mr + (rest ? max_long(rest, mr / 4 + 1) : 0));
    if (best == 0 || cost < best_cost || (cost == best_cost && labs(blocks - middle) < labs(ceil_div(m, best * split) - middle)))
      best = part, best_cost = cost;
  }
  return best;
}

static atomic_int most_levels = -1;

void ck_gemm_set_strassen_levels(int levels) {
  atomic_store(&most_levels, levels < 0 ? -1 : levels > 2 ? 2 : levels);
}

int ck_gemm_strassen_levels(void) {
  int levels = atomic_load_explicit(&most_levels, memory_order_relaxed);
  if (levels >= 0) return levels;
  const char *text = getenv("GYRE_STRASSEN");
  levels = text && text[0] >= '0' && text[0] <= '2' && !text[1] ? text[0] - '0' : 2;
  int unset = -1;
  atomic_compare_exchange_strong(&most_levels, &unset, levels);
  return levels;
}

// Blocks of four or two parts of about 68 rows, 128 columns and 256 steps: the block of C and what meets in
// it stay in a second cache of a megabyte.
static void divide(struct run *r, int levels) {
  enum { ROWS = 68, COLUMNS = 128, STEPS = 256 };
  const struct ck_gemm_strassen *p = r->product;
  const struct ck_gemm_kernel *kernel = r->kernel;
  r->levels = levels;
  r->split = 1 << levels;
  r->products = levels == 1 ? 7 : 49;
  const long mr = kernel->mr, nr = kernel->nr, split = r->split;
  r->part_m = choose_part(p->m, ROWS * split, r->split, mr);
  r->blocks_m = ceil_div(p->m, r->part_m * split);
  const long wanted = max_long(1, (p->n + COLUMNS * split / 2) / (COLUMNS * split));
  r->part_n = round_up(ceil_div(ceil_div(p->n, wanted), split), nr);
  r->blocks_n = ceil_div(p->n, r->part_n * split);
  r->units = round_up(ceil_div(ceil_div(p->k, ceil_div(p->k, STEPS * split)), split), LANES);
  r->blocks_k = ceil_div(p->k, r->units * split);
  r->slivers = ceil_div(r->part_m, mr);
  r->panels = r->part_n / nr;
  r->a_stride = r->slivers * r->units * mr + PAD;
  r->b_stride = r->panels * r->units * nr + PAD;
  r->a_block = r->products * r->a_stride;
  r->b_block = r->products * r->b_stride;
  r->period_a = mr / gcd(mr, kernel->lanes) * kernel->lanes;
  r->period_b = nr;
}

// Blocks of columns that an item has: a block of rows forms A's sums once for them, and a thread keeps B's.
// Few make A's dear, many leave threads without work at the end.
static void choose_chunk(struct run *r) {
  enum { FORM = 50, KEPT_BYTES = 26 << 20, MANY_THREADS = 4 };  // FORM: multiplications that a sum's element costs
  const long threads = ck_thread_count(), split = r->split;
  const double rows = (double)(r->part_m * split), columns = (double)(r->part_n * split);
  const double block = rows * columns * r->products / (double)(split * split * split);
  const long most = max_long(1, KEPT_BYTES / (threads > MANY_THREADS ? 4 : 1) / (r->b_block * 4));
  double best = 0;
  for (long chunk = 1; chunk <= min_long(most, r->blocks_n); chunk++) {
    const long chunks = ceil_div(r->blocks_n, chunk), items = ceil_div(r->blocks_m * chunks, threads);
    const double time = (double)items * (rows * FORM + (double)chunk * block) +
                        (double)(ceil_div(items, r->blocks_m) * chunk) * columns * FORM;
    if (best == 0 || time < best) best = time, r->chunk = chunk;
  }
}

// The division with the most levels that gain: kernels.md has the times. Each level saves an eighth of the
// multiplications; sums, and zeros that fill parts, must not eat that up.
static bool choose_levels(struct run *r) {
  static const struct { long least; double work, most; } wanted[3] = {{0, 0, 0}, {512, 0x1p29, 0.935}, {768, 0, 0.84}};
  const struct ck_gemm_strassen *p = r->product;
  const long least = min_long(p->m, min_long(p->n, p->k));
  const double work = (double)p->m * (double)p->n * (double)p->k;
  for (int levels = ck_gemm_strassen_levels(); levels > 0; levels--) {
    if (least < wanted[levels].least || work < wanted[levels].work) continue;
    divide(r, levels);
    const double rows = (double)(r->part_m * r->blocks_m), columns = (double)(r->part_n * r->blocks_n);
    const double done = r->products * rows * columns * (double)(r->units * r->blocks_k);
    if (done <= wanted[levels].most * work) return true;
  }
  return false;
}

struct scan {
  const struct ck_gemm_view *view;
  long length;
  atomic_bool found;
};

static void scan_body(void *context, long begin, long end) {
  struct scan *s = context;
  for (long line = begin; line < end; line++) {
    const uint32_t *x = (const uint32_t *)s->view->data + line * max_long(s->view->x_stride, s->view->k_stride);
    uint32_t most = 0;
    for (long i = 0; i < s->length; i++) {
      const uint32_t bits = x[i] & 0x7FFFFFFFu;
      most = bits > most ? bits : most;
    }
    if (most >= 0x7F800000u) atomic_store_explicit(&s->found, true, memory_order_relaxed);
  }
}

// Whether all of an operand is float32 and finite.
static bool is_finite(const struct ck_gemm_view *view, long k) {
  if (view->type != CK_GEMM_TYPE_F32) return false;
  struct scan scan = {.view = view, .length = view->k_stride == 1 ? k : view->x_count};
  ck_parallel_for(view->k_stride == 1 ? view->x_count : k, 16, scan_body, &scan);
  return !atomic_load(&scan.found);
}

bool ck_gemm_strassen_run(const struct ck_gemm_strassen *p) {
  struct run r = {.product = p, .kernel = p->level->f32, .fast = p->level->fast, .caller = pthread_self()};
  if (!choose_levels(&r)) return false;
  // A second product could not undo what was added to C.
  if (p->beta != 0 && !(is_finite(&p->a, p->k) && is_finite(&p->b, p->k))) return false;
  choose_chunk(&r);
  const ck_scratch_mark mark = ck_scratch_begin();
  const long items = r.blocks_m * ceil_div(r.blocks_n, r.chunk);
  r.range_count = (int)min_long(items, ck_thread_count());
  r.ranges = ck_scratch((size_t)r.range_count * sizeof *r.ranges);
  for (r.kb = 0; r.kb < r.blocks_k && !atomic_load(&r.spoilt); r.kb++) {
    for (int i = 0; i < r.range_count; i++) {
      atomic_init(&r.ranges[i].next, items * i / r.range_count);
      r.ranges[i].end = items * (i + 1) / r.range_count;
    }
    atomic_store(&r.others, 0);
    ck_parallel_for(r.range_count, 1, multiply_body, &r);
  }
  ck_scratch_end(mark);
  return !atomic_load(&r.spoilt);
}
