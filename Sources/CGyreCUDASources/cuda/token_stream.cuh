// The weights of a token as one stream a block. A block's share of a product is rows; they come in stages
// of four rows (or several fours of short ones) and up to 4 KB of each, through a ring in shared memory,
// over the ends of products and phases, so that device memory works while the block waits for numbers.
// Pairs of computing warps take stages in turn: they have four times as long for a stage as memory.
//
// bfloat16: on tensor cores. Of the operand of 16 columns by 8 "rows", "row" 2r + h is row r at columns
// 64u + 32h and on, so that lanes read 128 bytes of a row together; of the other operand, rows 0 to 7 are
// the sequences' numbers at the columns of h = 0 and rows 8 to 15 those of h = 1. A quarter of the sums
// is what is wanted. A number is the sum of two bfloat16 (16 bits and the signs), so products are exact
// and sums in float32. float32: by the arithmetic units, a lane the same bytes.
#pragma once
#include "token_machine.cuh"

// Element type of weights, rows of a batch.
#ifndef TOKEN_VARIANT
#define TOKEN_VARIANT 0
#endif
#define WEIGHTS_ARE_FLOAT (TOKEN_VARIANT & 1)
#define M ((TOKEN_VARIANT & 2) ? 4 : 1)
#define ELEMENT (WEIGHTS_ARE_FLOAT ? 4 : 2)
#define TEAMS (WARPS / TEAM)
#define SLOTS WARPS  // of a row's sums: a slice of its columns has TEAM; after TEAMS slices they are added to
#define PARTIAL_ROW (SLOTS * M + 4)  // floats of a row's sums: banks are met in turn
#define PARTS (WEIGHTS_ARE_FLOAT ? 1 : 2)  // that a number is the sum of

// Bytes of an operand of one sequence: PARTS planes, which begin at different banks.
GYRE_DEVICE int plane_of(int size) { return (size * ELEMENT + 127) / 128 * 128 + 16; }
GYRE_DEVICE int extent_of(int size) { return PARTS * plane_of(size); }

// The block's outputs of `total` in a phase.
GYRE_DEVICE void share(int total, int &first, int &last) {
  first = (int)((unsigned)total * blockIdx.x / gridDim.x);
  last = (int)((unsigned)total * (blockIdx.x + 1) / gridDim.x);
}
// Rows of a stage.
GYRE_DEVICE int stage_rows(int slice) {
  return GYRE_TOKEN_STAGE / (GYRE_TOKEN_ROWS * slice * ELEMENT) * GYRE_TOKEN_ROWS;
}

// A place in the ring.
struct Slot {
  int at, depth;
  unsigned parity;
  GYRE_DEVICE void start(int d) { at = 0, depth = d, parity = 0; }
  GYRE_DEVICE void advance(int n) {
    for (at += n; at >= depth; at -= depth) parity ^= 1;
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
    int rows = e.paired ? 2 * own : own, step = stage_rows(e.slice), slice = e.slice * ELEMENT;
    long row_bytes = (long)e.columns * ELEMENT;
    const char *base = e.weight + first * row_bytes;
    long second = (e.rows - own) * row_bytes;  // from the first half's rows to the other's
    for (int row = 0; row < rows; row += step) {
      int end = min(row + step, rows);
      for (int column = 0; column < row_bytes; column += slice) {
        int bytes = min(slice, (int)row_bytes - column);
        bool whole = bytes == row_bytes;
        if (sent >= a.depth) stage_await(&s.empty[slot.at], slot.parity ^ 1);
        if (sent >= a.flight) {
          stage_await(&s.full[oldest.at], oldest.parity);
          oldest.advance(1);
        }
        unsigned long *full = &s.full[slot.at];
        char *to = ring + slot.at * GYRE_TOKEN_STAGE;
        stage_expect(full, (end - row) * bytes, lane);
        // Whole rows lie behind each other.
        for (int i = row, n = 0; i < end; n++) {
          int run = whole ? (i < own ? min(own, end) : end) - i : 1;
          stage_copy(to, base + i * row_bytes + (i < own ? 0 : second) + column, run * bytes, full,
                     lane, n);
          to += run * slice;
          i += run;
        }
        stage_end(full);
        slot.advance(1);
        sent++;
      }
    }
  }
}

GYRE_DEVICE float low(unsigned w) { return __uint_as_float(w << 16); }
GYRE_DEVICE float high(unsigned w) { return __uint_as_float(w & 0xffff0000u); }

// Where element e of an operand lies in a plane: words of two elements. Of 64, the lanes' 32 bytes are
// elements 8t to 8t + 7 of both halves, as tensor cores take them.
GYRE_DEVICE int place_of(int e) {
#if WEIGHTS_ARE_FLOAT
  return e * 4;
#else
  return (e & ~63) * 2 | (e & 24) << 2 | (e & 6) << 2 | (e & 32) >> 3 | (e & 1) << 1;
#endif
}
// Two numbers of an operand from element e on, an even one, in one sequence's planes.
GYRE_DEVICE void put_two(char *to, int plane, int e, float x, float y) {
  to += place_of(e);
#if WEIGHTS_ARE_FLOAT
  *(float2 *)to = make_float2(x, y);
#else
  unsigned whole, rest;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(whole) : "f"(y), "f"(x));
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(rest) : "f"(y - high(whole)), "f"(x - low(whole)));
  *(unsigned *)to = whole;
  *(unsigned *)(to + plane) = rest;
#endif
}
GYRE_DEVICE void put_one(char *to, int plane, int e, float x) {
  to += place_of(e);
#if WEIGHTS_ARE_FLOAT
  *(float *)to = x;
#else
  unsigned short whole = float_to_bf16(x);
  *(unsigned short *)to = whole;
  *(unsigned short *)(to + plane) = float_to_bf16(x - bf16_to_float(whole));
#endif
}

// What a lane adds up of four rows. Lane: row lane / 8 of the weights, 16 bytes of every 128.
struct Sums {
#if WEIGHTS_ARE_FLOAT
  float x[M];
  GYRE_DEVICE void clear() {
#pragma unroll
    for (int m = 0; m < M; m++) x[m] = 0.f;
  }
  static GYRE_DEVICE int operand_at(int lane, int) { return (lane & 7) * 16; }
  // 16 bytes of a row, and what they meet.
  GYRE_DEVICE void add(uint4 u, const char *operand, int plane, int) {
#pragma unroll
    for (int m = 0; m < M; m++) {
      float4 y = *(const float4 *)(operand + m * plane);
      x[m] = fmaf(__uint_as_float(u.x), y.x, x[m]);
      x[m] = fmaf(__uint_as_float(u.y), y.y, x[m]);
      x[m] = fmaf(__uint_as_float(u.z), y.z, x[m]);
      x[m] = fmaf(__uint_as_float(u.w), y.w, x[m]);
    }
  }
  // Whole runs of 128 bytes; those that were taken.
  GYRE_DEVICE int run(const char *row, const char *operand, int plane, int bytes) {
    int i = 0;
#pragma unroll 4
    for (; i + 128 <= bytes; i += 128) add(*(const uint4 *)(row + i), operand + i, plane, bytes);
    return i;
  }
  // To the slot at `to`, rows PARTIAL_ROW apart.
  GYRE_DEVICE void leave(float *to, int lane, int rows, bool adds) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
      for (int o = 1; o < 8; o <<= 1) x[m] += __shfl_xor_sync(~0u, x[m], o);
      float *at = to + lane / 8 * PARTIAL_ROW + m;
      if ((lane & 7) == 0 && lane / 8 < rows) *at = adds ? *at + x[m] : x[m];
    }
  }
#else
  float x[4][4];  // four chains, for products take a while
  GYRE_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < 16; i++) x[i / 4][i & 3] = 0.f;
  }
  // Rows that no sequence has repeat others.
  static GYRE_DEVICE int operand_at(int lane, int plane) {
    return (lane & 3) * 32 + ((lane >> 2) & (PARTS * M - 1)) * plane;
  }
  static GYRE_DEVICE void product(float (&c)[4], uint4 a, unsigned u, unsigned v) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(u), "r"(v));
  }
  // 16 bytes of a row, of whose last run `left` bytes are left, and what they meet.
  GYRE_DEVICE void add(uint4 u, const char *operand, int, int left) {
    uint4 y = *(const uint4 *)operand, z = *(const uint4 *)(operand + 16);
    left -= (this_thread() & 3) * 16;
    if (left <= 0) y.x = y.z = z.x = z.z = 0;
    if (left <= 64) y.y = y.w = z.y = z.w = 0;
    product(x[0], y, u.x, u.y);
    product(x[1], z, u.z, u.w);
  }
  // Runs of 128 bytes, on their way while others are multiplied. Lanes whose rows no sequence
  // has keep zeros, and cost nothing.
  struct Batch {
    uint4 u[BATCH], y[2 * BATCH];
    GYRE_DEVICE void clear() {
#pragma unroll
      for (int i = 0; i < 2 * BATCH; i++) y[i] = make_uint4(0, 0, 0, 0);
    }
    static GYRE_DEVICE void fours(uint4 &x, const char *p, bool reads) {
      asm volatile(
          "{ .reg .pred p; setp.ne.u32 p, %5, 0; @p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4]; }"
          : "+r"(x.x), "+r"(x.y), "+r"(x.z), "+r"(x.w)
          : "r"(shared_address(p)), "r"((unsigned)reads));
    }
    GYRE_DEVICE void load(const char *row, const char *operand, bool reads) {
#pragma unroll
      for (int i = 0; i < BATCH; i++) {
        u[i] = *(const uint4 *)(row + i * 128);
        fours(y[2 * i], operand + i * 128, reads);
        fours(y[2 * i + 1], operand + i * 128 + 16, reads);
      }
    }
  };
  template <int CHAIN> GYRE_DEVICE void multiply(const Batch &b) {
#pragma unroll
    for (int i = 0; i < BATCH; i++)
      product(x[CHAIN + i & 3], b.y[2 * i], b.u[i].x, b.u[i].y);
#pragma unroll
    for (int i = 0; i < BATCH; i++)
      product(x[CHAIN + i & 3], b.y[2 * i + 1], b.u[i].z, b.u[i].w);
  }
  // Whole batches; bytes taken. The last load is behind them, and not used.
  GYRE_DEVICE int run(const char *row, const char *operand, int, int bytes) {
    const int size = BATCH * 128;
    int i = 0;
    bool reads = (this_thread() & 31) < 4 * PARTS * M;
    Batch even, odd;
    even.clear(), odd.clear();
    even.load(row, operand, reads);
#pragma unroll 1
    for (; i + 2 * size <= bytes; i += 2 * size) {
      odd.load(row + i + size, operand + i + size, reads);
      multiply<0>(even);
      even.load(row + i + 2 * size, operand + i + 2 * size, reads);
      multiply<BATCH>(odd);
    }
    if (i + size <= bytes) {
      multiply<0>(even);
      i += size;
    }
    return i;
  }
  GYRE_DEVICE void leave(float *to, int lane, int rows, bool adds) {
    // Both halves of the columns, then the two parts of a number.
    float sum = ((x[0][0] + x[0][3]) + (x[1][0] + x[1][3])) +
                ((x[2][0] + x[2][3]) + (x[3][0] + x[3][3]));
    sum += __shfl_xor_sync(~0u, sum, 4);
    to += (lane & 3) * PARTIAL_ROW + lane / 8;
    if ((lane & 4) == 0 && lane < 8 * M && (lane & 3) < rows) *to = adds ? *to + sum : sum;
  }
#endif
};

// A computing warp's end of the stream: every stage of its team's turn.
struct Reader {
  const char *ring;
  unsigned long *full, *empty;
  Slot slot;   // of the warp's next stage
  int before;  // stages of others before it in the next product
  GYRE_DEVICE void start(const gyre_token_step_args &a, const char *r, gyre_token_shared &s) {
    ring = r, full = s.full, empty = s.empty;
    before = (threadIdx.x >> 5) / TEAM;
    slot.start(a.depth);
    slot.advance(before);
  }

  // The warp's part of one product against the operand at x. Sums go to partials[row][slot][M].
  GYRE_DEVICE void multiply(int rows, int columns, int slice, const char *x, float *partials) {
    int thread = this_thread(), lane = thread & 31, member = (thread >> 5) % TEAM;
    int part = (lane & 7) * 16;
    int step = stage_rows(slice), plane = plane_of(columns);
    int row_bytes = columns * ELEMENT, slice_bytes = slice * ELEMENT;
    int slices = (row_bytes + slice_bytes - 1) / slice_bytes;
    int stages = (rows + step - 1) / step * slices;
    const char *source = ring + (lane >> 3) * slice_bytes + part;
    x += Sums::operand_at(lane, plane);
    int more_rows = TEAMS / slices * step, more_slices = TEAMS % slices;
    int row = before / slices * step, piece = before % slices, stage = before;
    for (; stage < stages; stage += TEAMS) {
      int bytes = min(slice_bytes, row_bytes - piece * slice_bytes), last = min(row + step, rows);
      // The member's columns.
      int from = (bytes / TEAM + 511) / 512 * 512 * member;
      bytes = max((member + 1 < TEAM ? min((bytes / TEAM + 511) / 512 * 512, bytes) : bytes) - from, 0);
      const char *at = source + slot.at * GYRE_TOKEN_STAGE + from;
      const char *operand = x + piece * slice_bytes + from;
      float *to = partials + row * PARTIAL_ROW + (piece % TEAMS * TEAM + member) * M;
      stage_await(full + slot.at, slot.parity);
      for (int r = row; r < last; r += GYRE_TOKEN_ROWS) {
        Sums sums;
        sums.clear();
        int i = sums.run(at, operand, plane, bytes);
        // Lanes behind the row's end take part with zeros.
#pragma unroll 1
        for (; i < bytes; i += 128) {
          uint4 u = make_uint4(0, 0, 0, 0);
          if (i + part < bytes) u = *(const uint4 *)(at + i);
          sums.add(u, operand + i, plane, bytes - i);
        }
        sums.leave(to, lane, last - r, piece >= TEAMS);
        at += GYRE_TOKEN_ROWS * slice_bytes;
        to += GYRE_TOKEN_ROWS * PARTIAL_ROW;
      }
      __syncwarp();
      if (lane == 0) stage_release(empty + slot.at);
      slot.advance(TEAMS);
      row += more_rows, piece += more_slices;
      if (piece >= slices) piece -= slices, row += step;
    }
    before = stage - stages;
  }
};
