// The weights of a token as one stream a block. A block's share of a product is rows; they come in stages
// of some rows, whole or a part of their columns, through a ring in shared memory, over the ends of
// products and phases, so that device memory works while the grid waits. All computing warps take each
// stage, a warp a slice of columns, whose operands it keeps in registers.
#pragma once
#include "token_machine.cuh"

// Element type of weights, rows of a batch.
#ifndef TOKEN_VARIANT
#define TOKEN_VARIANT 0
#endif
#define WEIGHTS_ARE_FLOAT (TOKEN_VARIANT & 1)
#define M ((TOKEN_VARIANT & 2) ? 4 : 1)
#define ELEMENT (WEIGHTS_ARE_FLOAT ? 4 : 2)
#define UNIT (16 / ELEMENT)  // elements that a lane takes at a time
#define PARTIAL_ROW (WARPS * M + 4)  // floats of a row's sums: banks are met in turn

// Extent of an operand.
GYRE_DEVICE int padded(int size) { return (size + 7) / 8 * 8; }

// The block's outputs of `total` in a phase.
GYRE_DEVICE void share(int total, int &first, int &last) {
  first = (int)((unsigned)total * blockIdx.x / gridDim.x);
  last = (int)((unsigned)total * (blockIdx.x + 1) / gridDim.x);
}
// Rows of a stage.
GYRE_DEVICE int stage_rows(int slice) { return GYRE_TOKEN_STAGE / (slice * ELEMENT); }

// A place in the ring.
struct Slot {
  int at, depth;
  unsigned parity;
  GYRE_DEVICE void start(int d) { at = 0, depth = d, parity = 0; }
  GYRE_DEVICE void advance() {
    if (++at == depth) at = 0, parity ^= 1;
  }
};

// The copying warp. At most `flight` stages are under way: memory is busy with fewer bytes than the ring
// holds, and what blocks say to each other must not queue behind the others.
GYRE_DEVICE void copy_stream(const gyre_token_step_args &a, char *ring, gyre_token_shared &s) {
  int lane = threadIdx.x & 31, sent = 0;
  Slot slot, oldest;
  slot.start(a.depth);
  oldest.start(a.depth);
  gyre_token_entry next = a.entries[0];
  for (int index = 0; index < a.entry_count; index++) {
    gyre_token_entry e = next;
    if (index + 1 < a.entry_count) next = a.entries[index + 1];
    int first, last;
    share(e.total, first, last);
    first = max(first - e.first, 0);
    last = min(last - e.first, e.rows);
    int own = last - first;
    if (own <= 0) continue;
    int rows = e.paired ? 2 * own : own, step = stage_rows(e.slice);
    long row_bytes = (long)e.columns * ELEMENT;
    const char *base = e.weight + first * row_bytes;
    long second = (e.rows - own) * row_bytes;  // from the first half's rows to the other's
    for (int column = 0; column < e.columns; column += e.slice) {
      int bytes = min(e.slice, e.columns - column) * ELEMENT;
      bool whole = bytes == row_bytes;
      for (int row = 0; row < rows; row += step) {
        int end = min(row + step, rows);
        if (sent >= a.depth) stage_await(&s.empty[slot.at], slot.parity ^ 1);
        if (sent >= a.flight) {
          stage_await(&s.full[oldest.at], oldest.parity);
          oldest.advance();
        }
        unsigned long *full = &s.full[slot.at];
        char *to = ring + slot.at * GYRE_TOKEN_STAGE;
        stage_expect(full, (end - row) * bytes, lane);
        for (int i = row; i < end;) {
          int run = whole ? (i < own ? min(own, end) : end) - i : 1;
          stage_copy(to, base + i * row_bytes + (i < own ? 0 : second) + column * ELEMENT,
                     run * bytes, full, lane);
          to += run * bytes;
          i += run;
        }
        stage_end(full);
        slot.advance();
        sent++;
      }
    }
  }
}

GYRE_DEVICE float low(unsigned w) { return __uint_as_float(w << 16); }
GYRE_DEVICE float high(unsigned w) { return __uint_as_float(w & 0xffff0000u); }

// What a lane's unit of a row meets.
struct Part {
  float x[UNIT];
  GYRE_DEVICE void read(const float *at, bool exists) {
#pragma unroll
    for (int i = 0; i < UNIT; i += 4) {
      float4 y = exists ? *(const float4 *)(at + i) : make_float4(0.f, 0.f, 0.f, 0.f);
      x[i] = y.x, x[i + 1] = y.y, x[i + 2] = y.z, x[i + 3] = y.w;
    }
  }
  GYRE_DEVICE float dot(uint4 u) const {
    unsigned w[4] = {u.x, u.y, u.z, u.w};
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
#if WEIGHTS_ARE_FLOAT
      sum = fmaf(__uint_as_float(w[i]), x[i], sum);
#else
      sum = fmaf(low(w[i]), x[2 * i], sum);
      sum = fmaf(high(w[i]), x[2 * i + 1], sum);
#endif
    }
    return sum;
  }
};

// Sums of four numbers over teams of LANES lanes: a quarter of a team gets one.
template <int LANES> GYRE_DEVICE float four_sums(const float (&x)[4], bool upper, bool odd) {
  float a = (upper ? x[2] : x[0]) + __shfl_xor_sync(~0u, upper ? x[0] : x[2], LANES / 2);
  float b = (upper ? x[3] : x[1]) + __shfl_xor_sync(~0u, upper ? x[1] : x[3], LANES / 2);
  a = (odd ? b : a) + __shfl_xor_sync(~0u, odd ? a : b, LANES / 4);
#pragma unroll
  for (int n = LANES / 8; n; n >>= 1) a += __shfl_xor_sync(~0u, a, n);
  return a;
}

// A computing warp's end of the stream.
struct Reader {
  const char *ring;
  unsigned long *full, *empty;
  Slot slot;
  GYRE_DEVICE void start(const gyre_token_step_args &a, const char *r, gyre_token_shared &s) {
    ring = r, full = s.full, empty = s.empty;
    slot.start(a.depth);
  }

  // The warp's slice of `rows` rows of `units` units each: LANES lanes a row. Four units of a lane are
  // under way together: about what a warp's part of a stage is.
  template <int LANES>
  GYRE_DEVICE void part(
      int rows, int step, int units, const float *x, int extent, float *partials, bool adds) {
    const int lines = 32 / LANES, quarter = LANES / 4;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int first = units * warp / WARPS, own = units * (warp + 1) / WARPS - first;
    int mine = lane % LANES, line = lane / LANES, bytes = units * 16;
    bool exists = mine < own, upper = mine & (LANES / 2), odd = mine & quarter;
    Part part[M];
#pragma unroll
    for (int m = 0; m < M; m++) part[m].read(x + m * extent + (first + mine) * UNIT, exists);
    // Lanes without a unit read the row's start: what it meets is zero. Rows behind a stage's end give
    // sums that nobody takes.
    const char *source = ring + (exists ? (first + mine) * 16 : 0) + line * bytes;
    bool writes = mine % quarter == 0;
    int own_row = line + mine / quarter * lines;
    float *to = partials + own_row * PARTIAL_ROW + warp * M;
    for (int row = 0; row < rows; row += step) {
      int count = min(step, rows - row);
      stage_await(full + slot.at, slot.parity);
      const char *at = source + slot.at * GYRE_TOKEN_STAGE;
      for (int i = 0; i < count; i += 4 * lines) {
        uint4 u[4];
#pragma unroll
        for (int n = 0; n < 4; n++) u[n] = *(const uint4 *)(at + (i + n * lines) * bytes);
#pragma unroll
        for (int m = 0; m < M; m++) {
          float sums[4];
#pragma unroll
          for (int n = 0; n < 4; n++) sums[n] = part[m].dot(u[n]);
          float total = four_sums<LANES>(sums, upper, odd);
          if (writes && i + own_row < count) {
            float *sum = to + (row + i) * PARTIAL_ROW + m;
            *sum = adds ? *sum + total : total;
          }
        }
      }
      __syncwarp();
      if (lane == 0) stage_release(empty + slot.at);
      slot.advance();
    }
  }
  // The warp's part of one product against the operand at x, whose rows lie `extent` apart. Sums go to
  // partials[row][warp][M].
  GYRE_DEVICE void multiply(
      int rows, int columns, int slice, const float *x, int extent, float *partials) {
    int step = stage_rows(slice);
    for (int column = 0; column < columns; column += slice) {
      int units = min(slice, columns - column) / UNIT;
      if (units > 16 * WARPS) part<32>(rows, step, units, x + column, extent, partials, column);
      else if (units > 8 * WARPS) part<16>(rows, step, units, x + column, extent, partials, column);
      else if (units > 4 * WARPS) part<8>(rows, step, units, x + column, extent, partials, column);
      else part<4>(rows, step, units, x + column, extent, partials, column);
    }
  }
};
