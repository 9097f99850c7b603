// Who does which part of a phase; portable. Weights are shared out by bytes, in runs of rows that every
// thread reads in order, the same thread the same rows at every token.
#include "kernel.h"
#include "../common/team.h"
#include <math.h>

enum {
  ROWS = 64,              // of a weight whose sums are kept before they are finished
  UNIT = 4,               // rows that the products sum together
  LINE = 64,
  THREAD_BYTES = 1 << 15, // of weights in a phase that are worth another thread
};

struct walker {
  const struct ck_token_level *level;
  const struct ck_token_step_args *args;
  int index, members;
  float *operands, *plain, *work, *sums, *second;
  struct ck_blocks_rows rounded;
  const struct ck_token_products *rounded_phase;
  int rounded_operand, rounded_type;
};

static long min_long(long a, long b) { return a < b ? a : b; }
static long max_long(long a, long b) { return a > b ? a : b; }

static long row_bytes(const struct ck_token_weight *w, long columns) {
  if (w->is_blocks) return ck_block_row_bytes(w->block, columns);
  return columns * (w->type == CK_GEMM_TYPE_F32 ? 4 : 2);
}
static bool is_paired(const struct ck_token_product *p) {
  return p->rule == CK_TOKEN_GATED || p->rule == CK_TOKEN_MIN_GRU;
}
static long output_bytes(const struct ck_token_product *p) {
  return row_bytes(&p->weight, p->columns) * (is_paired(p) ? 2 : 1);
}
static long phase_bytes(const struct ck_token_products *p) {
  long bytes = 0;
  for (long i = 0; i < p->product_count; i++)
    bytes += p->products[i].rows * output_bytes(&p->products[i]);
  return bytes;
}

// Outputs of a product before a place in the phase's bytes, in whole units: neighbours agree on it.
static long outputs_before(const struct ck_token_product *p, long bytes) {
  if (bytes <= 0) return 0;
  const long each = UNIT * output_bytes(p), units = bytes / each + (bytes % each != 0);
  return min_long(units * UNIT, p->rows);
}

struct share { long begin, end; };
static struct share share_of(const struct walker *w, long count) {
  return (struct share){(long)((__int128)count * w->index / w->members),
                        (long)((__int128)count * (w->index + 1) / w->members)};
}

struct operand { const float *x; long stride; };

// Sums of rows [first, first + count) of a weight, ROWS between sequences.
static void sum_rows(struct walker *w, const struct ck_token_products *phase,
                     const struct ck_token_product *p, struct operand x, long first, long count,
                     float *sums) {
  const char *data = (const char *)p->weight.data + first * row_bytes(&p->weight, p->columns);
  if (!p->weight.is_blocks) {
    const struct ck_gemm_dot dot = {
        .rows = w->args->batch, .columns = count, .k = p->columns, .x = x.x, .ldx = x.stride,
        .w = data, .ldw = p->columns, .w_type = p->weight.type, .y = sums, .y_row_stride = ROWS,
        .y_column_stride = 1, .alpha = 1,
    };
    w->level->products->rows->dot(&dot);
    return;
  }
  const struct ck_block_product_args args = {
      .m = w->args->batch, .n = count, .k = p->columns, .x = x.x, .ldx = x.stride, .w = data, .y = sums,
      .ldy = ROWS, .type = p->weight.block,
  };
  const bool is_rounded = w->rounded_phase == phase && w->rounded_operand == p->operand
                          && w->rounded_type == (int)p->weight.block;
  if (!is_rounded) {
    w->rounded.runs = p->columns / 32;
    w->level->blocks->quantize(&w->rounded, &args, 0, w->args->batch);
    w->rounded_phase = phase;
    w->rounded_operand = p->operand;
    w->rounded_type = (int)p->weight.block;
  }
  w->level->blocks->dot(&args, &w->rounded, 0, count);
}

static void multiply(struct walker *w, const struct ck_token_products *phase,
                     const struct operand *operands) {
  const struct share own = share_of(w, phase_bytes(phase));
  long before = 0;
  for (long i = 0; i < phase->product_count; i++) {
    const struct ck_token_product *p = &phase->products[i];
    const long first = outputs_before(p, own.begin - before);
    const long last = outputs_before(p, own.end - before);
    before += p->rows * output_bytes(p);
    for (long n = first; n < last; n += ROWS) {
      const long count = min_long(ROWS, last - n);
      sum_rows(w, phase, p, operands[p->operand], n, count, w->sums);
      if (is_paired(p)) sum_rows(w, phase, p, operands[p->operand], p->rows + n, count, w->second);
      for (long b = 0; b < w->args->batch; b++) {
        const struct ck_token_finish finish = {
            .product = p, .sequence = b, .first = n, .count = count, .sums = w->sums + b * ROWS,
            .second = is_paired(p) ? w->second + b * ROWS : NULL,
        };
        w->level->kernels->finish(w->args, &finish);
      }
    }
  }
}

// Operand i as it is, where nothing happens to it, or made.
static void make_operands(struct walker *w, const struct ck_token_products *p, struct operand *out) {
  const struct ck_token_step_args *args = w->args;
  const struct ck_token_kernels *kernels = w->level->kernels;
  float *to = w->operands;
  if (p->mixes) {
    const struct ck_token_operand *o = &p->operands[0];
    const long count = args->batch * o->size;
    const float *last = p->last + args->position % 2 * count;
    float *next = p->last + (args->position + 1) % 2 * count;
    const struct share own = share_of(w, o->size);
    for (long b = 0; b < args->batch; b++) {
      kernels->operand(args, o, b, w->plain, w->work);
      kernels->shift(p, w->plain, last + b * o->size, to + b * o->size, o->size, count);
      for (long i = own.begin; i < own.end; i++) next[b * o->size + i] = w->plain[i];
    }
    for (long i = 0; i < p->mix_count; i++)
      out[i] = (struct operand){to + i * count, o->size};
    return;
  }
  for (long i = 0; i < p->operand_count; i++) {
    const struct ck_token_operand *o = &p->operands[i];
    out[i] = (struct operand){o->x.data, o->x.stride};
    if (!o->norms && !o->gate && !o->attention) continue;
    for (long b = 0; b < args->batch; b++)
      kernels->operand(args, o, b, to + b * o->size, w->work);
    out[i] = (struct operand){to, o->size};
    to += args->batch * o->size;
  }
}

static void make_moves(struct walker *w, const struct ck_token_products *p) {
  for (long m = 0; m < p->move_count; m++) {
    const struct ck_token_move *move = &p->moves[m];
    const struct share own = share_of(w, move->channels);
    for (long b = 0; b < w->args->batch; b++) {
      float *window = move->window + b * (move->taps - 1) * move->channels;
      for (long t = 0; t + 2 < move->taps; t++)
        for (long c = own.begin; c < own.end; c++)
          window[t * move->channels + c] = window[(t + 1) * move->channels + c];
      if (move->taps < 2) continue;
      const float *from = move->from.data + b * move->from.stride;
      window += (move->taps - 2) * move->channels;
      for (long c = own.begin; c < own.end; c++) window[c] = from[c];
    }
  }
}

static void embed(struct walker *w, const struct ck_token_embedding *e) {
  const struct ck_token_step_args *args = w->args;
  const struct share own = share_of(w, args->batch);
  for (long b = own.begin; b < own.end; b++) {
    const char *row = (const char *)e->table.data + args->tokens[b] * row_bytes(&e->table, e->size);
    if (e->table.is_blocks)
      w->level->blocks->unpack(e->table.block, (const uint8_t *)row, w->work, e->size);
    else
      w->level->products->rows->to_f32(w->work, row, e->table.type, false, e->size);
    w->level->kernels->embed(e, b, w->work);
  }
  if (w->index != 0) return;
  for (long i = 0; i < args->rotation_count; i++) {
    const struct ck_token_rotation *r = &args->rotations[i];
    for (long pair = 0; pair < r->pairs; pair++) {
      const double angle = (double)args->position * r->rates[pair];
      r->cosines[pair] = (float)cos(angle);
      r->sines[pair] = (float)sin(angle);
    }
  }
}

struct run {
  const struct ck_token_level *level;
  const struct ck_token_step_args *args;
};

static void walk(void *context, int index, int members, ck_barrier *barrier) {
  const struct run *run = context;
  const struct ck_token_step_args *args = run->args;
  const size_t batch = (size_t)args->batch, size = (size_t)args->size;
  const ck_scratch_mark mark = ck_scratch_begin();
  struct operand operands[CK_TOKEN_OPERANDS];
  struct walker w = {
      .level = run->level,
      .args = args,
      .index = index,
      .members = members,
      .operands = ck_scratch(batch * (size_t)args->operand_floats * sizeof(float) + LINE),
      .plain = ck_scratch(size * sizeof(float) + LINE),
      .work = ck_scratch(size * sizeof(float) + LINE),
      .sums = ck_scratch(batch * ROWS * sizeof(float)),
      .second = ck_scratch(batch * ROWS * sizeof(float)),
      .rounded = {.q = ck_scratch(batch * size + LINE),
                  .d = ck_scratch(batch * size / 32 * sizeof(float) + LINE),
                  .s = ck_scratch(batch * size / 32 * sizeof(float) + LINE),
                  .shift = ck_scratch(batch * size / 32 * 8 * sizeof(int32_t) + LINE)},
  };
  long round = 0;
  for (long n = 0; n < args->phase_count; n++) {
    const struct ck_token_phase *phase = &args->phases[n];
    switch (phase->kind) {
    case CK_TOKEN_EMBED: embed(&w, phase->work); break;
    case CK_TOKEN_MULTIPLY:
      make_moves(&w, phase->work);
      make_operands(&w, phase->work, operands);
      multiply(&w, phase->work, operands);
      break;
    case CK_TOKEN_STEP: {
      const struct ck_token_matrix *m = phase->work;
      const struct share own = share_of(&w, args->batch * m->heads);
      run->level->kernels->step(args, m, own.begin, own.end);
      break;
    }
    case CK_TOKEN_ATTEND: {
      const struct ck_token_attention *a = phase->work;
      const struct share own = share_of(&w, args->batch * ck_token_pieces(a, args->position));
      run->level->kernels->attend(args, a, own.begin, own.end);
      break;
    }
    }
    if (n + 1 < args->phase_count) ck_barrier_wait(barrier, &round);
  }
  ck_scratch_end(mark);
}

void ck_token_run(const struct ck_token_level *level, const struct ck_token_step_args *args) {
  struct run run = {level, args};
  long most = 0;
  for (long n = 0; n < args->phase_count; n++)
    if (args->phases[n].kind == CK_TOKEN_MULTIPLY)
      most = max_long(most, phase_bytes(args->phases[n].work));
  const long worth = max_long(1, most / THREAD_BYTES);
  ck_parallel_team((int)min_long(min_long(args->threads, ck_thread_count()), worth), walk, &run);
}
