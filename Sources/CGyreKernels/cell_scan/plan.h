// How a cell scan is laid out and divided; the same for all levels.
//
// Units are handled in blocks of CELL_UNITS (inside one head), batch rows in row blocks of at most
// `max_rows`. One tile = one unit block x one row block, stored [rows][CELL_UNITS]. Two divisions
// between threads: by row blocks (no synchronisation, every thread reads all of R) or by unit blocks
// (a barrier a step, every thread reads its own part of R). The arithmetic of an output does not
// depend on the division.
//
// Backward on tiles is divided otherwise: units into `parts`, whose gates' gradients stay with the thread
// that made them. A part multiplies them with its rows of R into sums for all units, and only those sums,
// G times less in number, cross to other threads. There are as many parts whatever number of threads
// joins, and their sums are added in order.
//
// Operand = the vector that R multiplies, transposed so that one row block's values of a unit are
// side by side: [row block][segment][heads * depth][rows], depth = Hh rounded up to the inputs that one
// step of the product takes.
#pragma once
#include "../common/team.h"
#include "ck_cell_scan.h"

enum { CELL_UNITS = 16, CELL_MAX_GATES = 4, CELL_MAX_ROWS = 16 };

struct cell_plan {
  const struct ck_cell_scan_shape *shape;
  long B, T, heads, Hh, H, G;
  long depth;               // rows of a panel: Hh rounded up
  long blocks_per_head, blocks;
  long row_blocks;
  long row_step, token_step;  // in tokens' places: from a row, from a token to the next one
  bool by_rows;
  int threads;
  long parts;               // backward on tiles; or 0
  bool streams;             // [B, T, H] arrays do not fit the caches
};

static inline long cell_pairs_per_head(const struct cell_plan *p) { return (p->blocks_per_head + 1) / 2; }

static inline struct cell_plan cell_plan_make(const struct ck_cell_scan_shape *s, bool backward,
                                              long max_rows, long element_bytes, long depth_step) {
  const bool tiles = depth_step > 2;
  struct cell_plan p = {.shape = s, .B = s->batch, .T = s->tokens, .heads = s->heads,
                        .Hh = s->units, .H = s->heads * s->units, .G = ck_cell_gate_count(s->cell)};
  p.row_step = s->time_major ? 1 : p.T;
  p.token_step = s->time_major ? p.B : 1;
  p.depth = (p.Hh + depth_step - 1) / depth_step * depth_step;
  p.blocks_per_head = (p.Hh + CELL_UNITS - 1) / CELL_UNITS;
  p.blocks = p.heads * p.blocks_per_head;
  const long panel_bytes = p.blocks * p.G * p.depth * CELL_UNITS * element_bytes;
  const long step_work = p.B * panel_bytes;
  enum { CACHED_BYTES = 2 << 20 };
  p.streams = p.B * p.T * p.H * (long)sizeof(float) > CACHED_BYTES;
  int threads = ck_thread_count();
  // A thread must have more to do in a step than a barrier costs. By rows, no operand crosses between
  // processors, and all of R must stay in each one's cache beside half a megabyte of operands, or be
  // small enough for the shared cache to bring it to eight rows or more in time. Tile products want all
  // rows they can get.
  enum { MIN_STEP_WORK = 200000, TILE_PANELS = 384 << 10, OPERANDS = 512 << 10, SHARED_PANELS = 1792 << 10,
         SHARED_ROWS = 8 };
  long most = TILE_PANELS;
  if (!tiles && ck_near_cache_bytes() - OPERANDS > most) most = ck_near_cache_bytes() - OPERANDS;
  if (!tiles && p.B >= SHARED_ROWS * threads && SHARED_PANELS > most) most = SHARED_PANELS;
  p.by_rows = p.B >= 2 * threads && panel_bytes < most;
  if (!p.by_rows) {
    if (threads > p.blocks) threads = (int)p.blocks;
    while (threads > 1 && step_work < (long)threads * MIN_STEP_WORK) threads--;
  }
  if (threads < 1) threads = 1;
  p.threads = threads;
  long row_blocks = (p.B + max_rows - 1) / max_rows;
  if (p.by_rows && row_blocks < threads) row_blocks = threads;
  if (p.by_rows) row_blocks = (row_blocks + threads - 1) / threads * threads;
  if (row_blocks > p.B) row_blocks = p.B;
  p.row_blocks = row_blocks < 1 ? 1 : row_blocks;
  if (tiles && backward && !p.by_rows && p.G > 1 && s->cell != CK_CELL_GRU_RESET_BEFORE) {
    const long most_parts = p.heads * cell_pairs_per_head(&p);
    p.parts = p.threads < most_parts ? p.threads : most_parts;
  }
  return p;
}

/// The first block of part `part`. A step of a tile product takes the inputs of two blocks.
static inline long cell_part_begin(const struct cell_plan *p, long part) {
  const long pairs = cell_pairs_per_head(p), pair = p->heads * pairs * part / p->parts;
  return pair / pairs * p->blocks_per_head + pair % pairs * 2;
}

static inline long cell_row_start(const struct cell_plan *p, long row_block) {
  return p->B * row_block / p->row_blocks;
}

/// The most rows that a row block has.
static inline long cell_most_rows(const struct cell_plan *p) {
  return (p->B + p->row_blocks - 1) / p->row_blocks;
}

static inline long cell_panel_elements(const struct cell_plan *p) { return p->depth * CELL_UNITS; }

/// One tile's place.
struct cell_tile {
  long row, rows;      // batch rows [row, row + rows)
  long block;          // unit block
  long unit, units;    // global units [unit, unit + units)
  long operand_unit;   // the first unit's place in an operand: head * depth + j
  long state;          // offset of the tile in a state array [B * blocks * CELL_UNITS]
  long units_ahead;    // from `unit` to that of the share's next tile with the same rows; 0: there is none
  bool is_last;        // that is in the next token
  int of_pair;         // 1, 2: first or second of two blocks of a head that a share has with the same rows; or 0
  bool follows;        // the share's tile before this one has the same rows and the units before these
};

static inline struct cell_tile cell_tile_at(const struct cell_plan *p, long block, long row_block) {
  const long head = block / p->blocks_per_head;
  const long j = block % p->blocks_per_head * CELL_UNITS;
  const long row = cell_row_start(p, row_block);
  const long rows = cell_row_start(p, row_block + 1) - row;
  return (struct cell_tile){
      .row = row, .rows = rows, .block = block, .unit = head * p->Hh + j,
      .units = p->Hh - j < CELL_UNITS ? p->Hh - j : CELL_UNITS, .operand_unit = head * p->depth + j,
      .state = row * p->blocks * CELL_UNITS + block * rows * CELL_UNITS};
}

/// What one member does.
struct cell_share {
  long block_begin, block_end, row_begin, row_end;  // unit blocks, row blocks
  long part_begin, part_end;
};

static inline struct cell_share cell_share_of(const struct cell_plan *p, int index, int members) {
  if (p->by_rows)
    return (struct cell_share){0, p->blocks, p->row_blocks * index / members,
                               p->row_blocks * (index + 1) / members};
  if (p->parts > 0) {
    const long first = p->parts * index / members, last = p->parts * (index + 1) / members;
    return (struct cell_share){cell_part_begin(p, first), cell_part_begin(p, last), 0, p->row_blocks, first, last};
  }
  return (struct cell_share){p->blocks * index / members, p->blocks * (index + 1) / members, 0,
                             p->row_blocks};
}

static inline struct cell_tile cell_tile_in(const struct cell_plan *p, struct cell_share share, long block,
                                            long row_block) {
  struct cell_tile t = cell_tile_at(p, block, row_block);
  if (share.row_end - share.row_begin != 1) return t;
  t.is_last = block + 1 == share.block_end;
  const long j = block % p->blocks_per_head;
  if (j % 2 == 0 && !t.is_last && j + 1 < p->blocks_per_head) t.of_pair = 1;
  if (j % 2 == 1 && block > share.block_begin) t.of_pair = 2;
  t.units_ahead = cell_tile_at(p, t.is_last ? share.block_begin : block + 1, row_block).unit - t.unit;
  t.follows = block > share.block_begin && cell_tile_at(p, block - 1, row_block).unit + CELL_UNITS == t.unit;
  return t;
}

/// Runs the statement that follows for every tile `t` of a share. Row blocks are the inner loop: a
/// panel is read once from far and stays near for the other row blocks.
#define CELL_FOR_TILES(p, share, t)                                                               \
  for (long block_ = (share).block_begin; block_ < (share).block_end; block_++)                   \
    for (long rows_ = (share).row_begin; rows_ < (share).row_end; rows_++)                        \
      for (struct cell_tile t = cell_tile_in(p, share, block_, rows_), *once_ = &t; once_; once_ = NULL)
