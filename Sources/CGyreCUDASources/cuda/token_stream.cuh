// The weights of a token as one stream a warp: pieces of 1 KiB of all products in order, dealt to the
// warps of a block in turn. A warp keeps DEPTH pieces under way, over the ends of products and phases,
// so that device memory works while the grid waits. Every lane reads what it copied itself: the ring
// needs no barrier.
#pragma once
#include "token_machine.cuh"

// Element type of weights, rows of a batch, pieces under way.
#ifndef TOKEN_VARIANT
#define TOKEN_VARIANT 0
#endif
#define WEIGHTS_ARE_FLOAT (TOKEN_VARIANT & 1)
#define M ((TOKEN_VARIANT & 2) ? 4 : 1)
#define DEPTH ((TOKEN_VARIANT & 4) ? 6 : 10)
#define WARPS (GYRE_TOKEN_THREADS / 32)
#define PIECE (WEIGHTS_ARE_FLOAT ? 256 : 512)  // elements

// Where element e of an operand lies: lanes read 16 bytes side by side.
GYRE_DEVICE int placed(int e) {
  return WEIGHTS_ARE_FLOAT ? e : (e & ~255) | (e & 4) << 5 | (e & 248) >> 1 | (e & 3);
}
// Extent of an operand with the zeros behind it.
GYRE_DEVICE int padded(int size) { return (size + PIECE - 1) / PIECE * PIECE; }

// A place in the stream: the warp's piece of the block's share of an entry. All of it stays in
// registers: members are scalars, and there is one copy of each function's code a use.
struct Stream {
  const gyre_token_entry *entries;
  int index, count;
  // The entry after the current one.
  const char *next_weight;
  int next_rows, next_first, next_total, next_columns, next_pieces, next_paired;
  const char *base;
  int row_bytes;
  long second;  // from the first half's rows to the other's
  int row, piece, rows, own, pieces, columns, step_row, step_piece;

  GYRE_DEVICE void look(int i) {
    const gyre_token_entry *e = entries + i;
    next_weight = e->weight, next_rows = e->rows, next_first = e->first, next_total = e->total;
    next_columns = e->columns, next_pieces = e->pieces, next_paired = e->paired;
  }
  GYRE_DEVICE void start(const gyre_token_entry *e, int n, int warp) {
    entries = e;
    count = n;
    index = -1;
    look(0);
    enter(warp);
  }
  // Goes to piece `left` from the start of the next entry, or of one after it.
  GYRE_DEVICE void enter(int left) {
    while (++index < count) {
      int first, last;
      share(next_total, first, last);
      first = max(first - next_first, 0);
      last = min(last - next_first, next_rows);
      own = max(last - first, 0);
      rows = next_paired ? 2 * own : own;
      pieces = next_pieces;
      columns = next_columns;
      row_bytes = columns * (WEIGHTS_ARE_FLOAT ? 4 : 2);
      base = next_weight + (long)first * row_bytes;
      second = (long)(next_rows - own) * row_bytes;
      if (index + 1 < count) look(index + 1);
      if (left < rows * pieces) break;
      left -= rows * pieces;
    }
    if (index >= count) return;
    row = left / pieces;
    piece = left - row * pieces;
    step_row = WARPS / pieces;
    step_piece = WARPS - step_row * pieces;
  }
  // The block's outputs of `total` in a phase.
  static GYRE_DEVICE void share(int total, int &first, int &last) {
    first = (int)((unsigned)total * blockIdx.x / gridDim.x);
    last = (int)((unsigned)total * (blockIdx.x + 1) / gridDim.x);
  }
  GYRE_DEVICE void advance() {
    row += step_row;
    piece += step_piece;
    if (piece >= pieces) {
      piece -= pieces;
      row++;
    }
    if (row >= rows) enter((row - rows) * pieces + piece);
  }
  // Starts the copy of this piece.
  GYRE_DEVICE void copy(char *slot, int lane) const {
    if (index < count) {
      const char *from =
          base + (long)row * row_bytes + (row >= own ? second : 0) + piece * GYRE_TOKEN_CHUNK;
      int left = row_bytes - piece * GYRE_TOKEN_CHUNK;
      copy_async(slot + lane * 16, lane * 16 < left ? from + lane * 16 : from, lane * 16 < left);
      bool more = 512 + lane * 16 < left;
      copy_async(slot + 512 + lane * 16, more ? from + 512 + lane * 16 : from, more);
    }
    copies_end_group();
  }
};

GYRE_DEVICE float low(unsigned w) { return __uint_as_float(w << 16); }
GYRE_DEVICE float high(unsigned w) { return __uint_as_float(w & 0xffff0000u); }

// The dot product of this lane's 16 bytes and what they meet, added to `sum`; `x`: 128 bytes' place.
GYRE_DEVICE float dot_half(uint4 w, const float *x, int lane, float sum) {
  float4 a = *(const float4 *)(x + lane * 4);
#if WEIGHTS_ARE_FLOAT
  sum = fmaf(__uint_as_float(w.x), a.x, sum);
  sum = fmaf(__uint_as_float(w.y), a.y, sum);
  sum = fmaf(__uint_as_float(w.z), a.z, sum);
  return fmaf(__uint_as_float(w.w), a.w, sum);
#else
  float4 b = *(const float4 *)(x + 128 + lane * 4);
  sum = fmaf(low(w.x), a.x, sum);
  sum = fmaf(high(w.x), a.y, sum);
  sum = fmaf(low(w.y), a.z, sum);
  sum = fmaf(high(w.y), a.w, sum);
  sum = fmaf(low(w.z), b.x, sum);
  sum = fmaf(high(w.z), b.y, sum);
  sum = fmaf(low(w.w), b.z, sum);
  return fmaf(high(w.w), b.w, sum);
#endif
}
