// The weights of a token as one stream a block. A block's share of a product is rows; they come in stages
// of four rows (or several fours of short ones) and up to 4 KB of each, through a ring in shared memory,
// over the ends of products and phases, so that device memory works while the block waits for numbers.
// Pairs of computing warps take stages in turn.
//
// A lane multiplies 16 bytes of every 512 of a row by numbers that it holds in registers for four rows,
// in float32: of bfloat16 weights that is eight columns, two instructions a weight. (Tensor cores were
// slower.)
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
#define PARTS (WEIGHTS_ARE_FLOAT ? 1 : 2)  // fours of columns that 16 bytes of weights meet
#define LINE 512  // bytes of a row that a warp takes at once
#define LINES (M == 1 ? 2 : 1)  // of them that a warp takes together

// Bytes of an operand of one sequence: float32 in PARTS planes, the first holds the first four of eight
// columns. So columns of weights and of a plane lie at the same offsets.
GYRE_DEVICE int plane_of(int size) { return (size * ELEMENT + 127) / 128 * 128 + 16; }
GYRE_DEVICE int extent_of(int size) { return PARTS * plane_of(size); }

// The block's outputs of `total` in a phase.
GYRE_DEVICE void share(int total, int &first, int &last) {
  first = (int)((unsigned)total * blockIdx.x / gridDim.x);
  last = (int)((unsigned)total * (blockIdx.x + 1) / gridDim.x);
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
    int half = last - first;
    if (half <= 0) continue;
    int rows = e.paired ? 2 * half : half, slice = e.slice * ELEMENT, row = 0, piece = 0;
    int row_bytes = e.columns * ELEMENT;
    const char *base = e.weight + (long)first * row_bytes;
    long second = (long)(e.rows - half) * row_bytes;  // from the first half's rows to the other's
    while (row < rows) {
      int end = min(row + e.step, rows), bytes = min(slice, row_bytes - piece * slice);
      // Lane n copies run n: whole rows lie behind each other, but for where the second half begins.
      bool whole = bytes == row_bytes, both = row < half && half < end;
      int runs = whole ? (both ? 2 : 1) : end - row, from = row + lane, count = 1;
      if (whole) {
        from = lane ? half : row;
        count = (lane || !both ? end : half) - from;
      }
      const char *source =
          base + (long)from * row_bytes + (from < half ? 0 : second) + piece * slice;
      char *to = ring + slot.at * GYRE_TOKEN_STAGE + (from - row) * slice;
      unsigned long *full = &s.full[slot.at];
      if (sent >= a.depth) stage_await(&s.empty[slot.at], slot.parity ^ 1);
      if (sent >= a.flight) {
        stage_await(&s.full[oldest.at], oldest.parity);
        oldest.advance(1);
      }
      stage_expect(full, (end - row) * bytes, lane);
      stage_copy(to, source, count * bytes, full, lane, runs);
      stage_end(full);
      slot.advance(1);
      sent++;
      if (++piece == e.pieces) piece = 0, row = end;
    }
  }
}

GYRE_DEVICE float low(unsigned w) { return __uint_as_float(w << 16); }
GYRE_DEVICE float high(unsigned w) { return __uint_as_float(w & 0xffff0000u); }

// Where element e of an operand lies.
GYRE_DEVICE int place_of(int e, int plane) {
#if WEIGHTS_ARE_FLOAT
  return e * 4;
#else
  return (e >> 3) * 16 + (e & 3) * 4 + (e & 4 ? plane : 0);
#endif
}
// Two numbers of an operand from element e on, an even one, in one sequence's planes.
GYRE_DEVICE void put_two(char *to, int plane, int e, float x, float y) {
  *(float2 *)(to + place_of(e, plane)) = make_float2(x, y);
}
GYRE_DEVICE void put_one(char *to, int plane, int e, float x) {
  *(float *)(to + place_of(e, plane)) = x;
}

// What 16 bytes of a row meet, of all sequences.
struct Operand {
  float x[M][4 * PARTS];
  GYRE_DEVICE void load(const char *p, int plane, bool exists) {
#pragma unroll
    for (int i = 0; i < M * PARTS; i++) {
      float4 y = exists ? *(const float4 *)(p + i * plane) : make_float4(0.f, 0.f, 0.f, 0.f);
      float *to = x[i / PARTS] + i % PARTS * 4;
      to[0] = y.x, to[1] = y.y, to[2] = y.z, to[3] = y.w;
    }
  }
};

// What a lane adds up of four rows.
struct Sums {
  float x[GYRE_TOKEN_ROWS][M], more[GYRE_TOKEN_ROWS][M];  // of even columns, of odd ones
  GYRE_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < GYRE_TOKEN_ROWS * M; i++) x[i / M][i % M] = more[i / M][i % M] = 0.f;
  }
  // Word `w` of 16 bytes of each row: sums of different rows do not wait for each other.
  GYRE_DEVICE void add(const unsigned (&u)[GYRE_TOKEN_ROWS], const Operand &y, int w) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int r = 0; r < GYRE_TOKEN_ROWS; r++) {
#if WEIGHTS_ARE_FLOAT
        float &sum = w & 1 ? more[r][m] : x[r][m];
        sum = fmaf(__uint_as_float(u[r]), y.x[m][w], sum);
#else
        x[r][m] = fmaf(low(u[r]), y.x[m][2 * w], x[r][m]);
        more[r][m] = fmaf(high(u[r]), y.x[m][2 * w + 1], more[r][m]);
#endif
      }
  }
  GYRE_DEVICE void add(const uint4 (&u)[GYRE_TOKEN_ROWS], const Operand &y) {
    add({u[0].x, u[1].x, u[2].x, u[3].x}, y, 0);
    add({u[0].y, u[1].y, u[2].y, u[3].y}, y, 1);
    add({u[0].z, u[1].z, u[2].z, u[3].z}, y, 2);
    add({u[0].w, u[1].w, u[2].w, u[3].w}, y, 3);
  }
  // COUNT lines of four rows, `stride` apart; pointers are the lane's own.
  template <int COUNT>
  GYRE_DEVICE void take(const char *row, int stride, const char *operand, int plane, bool exists) {
    Operand y[COUNT];
    uint4 u[COUNT][GYRE_TOKEN_ROWS];
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
#pragma unroll
      for (int r = 0; r < GYRE_TOKEN_ROWS; r++)
        u[i][r] = exists ? *(const uint4 *)(row + r * stride + i * LINE) : make_uint4(0, 0, 0, 0);
      y[i].load(operand + i * LINE, plane, exists);
    }
    __syncwarp();  // or the compiler puts each load where it is waited for
#pragma unroll
    for (int i = 0; i < COUNT; i++) add(u[i], y[i]);
  }
  // Each of two lanes keeps one of x and y, and adds what the other has of it.
  static GYRE_DEVICE float halves(float x, float y, int lane, int bit) {
    bool upper = lane & bit;
    float sent = __shfl_xor_sync(~0u, upper ? x : y, bit);
    return (upper ? y : x) + sent;
  }
  // To the slot at `to`, rows PARTIAL_ROW apart: a lane ends with row lane / 8.
  GYRE_DEVICE void leave(float *to, int lane, int rows, bool adds) {
    float y[M];
#pragma unroll
    for (int i = 0; i < GYRE_TOKEN_ROWS * M; i++) x[i / M][i % M] += more[i / M][i % M];
#pragma unroll
    for (int m = 0; m < M; m++)
      y[m] = halves(halves(x[0][m], x[2][m], lane, 16), halves(x[1][m], x[3][m], lane, 16), lane, 8);
#if M == 4
    float sum = halves(halves(y[0], y[2], lane, 4), halves(y[1], y[3], lane, 4), lane, 2);
    int m = lane >> 1 & 3;
#else
    float sum = y[0];
    sum += __shfl_xor_sync(~0u, sum, 4);
    sum += __shfl_xor_sync(~0u, sum, 2);
    int m = 0;
#endif
    sum += __shfl_xor_sync(~0u, sum, 1);
    float *at = to + (lane >> 3) * PARTIAL_ROW + m;
    if (lane % (8 / M) == 0 && lane >> 3 < rows) *at = adds ? *at + sum : sum;
  }
};

// Where a computing warp stands in the stream: the place in the ring of its team's next stage, the
// barriers' parity there, and the stages of others before it in the next product. In one word, so that
// a call takes and returns it in a register.
GYRE_DEVICE unsigned turn_of(const Slot &slot, int before) {
  return slot.at | slot.parity << 8 | before << 16;
}
GYRE_DEVICE unsigned first_turn(int depth) {
  Slot slot;
  int before = (threadIdx.x >> 5) / TEAM;
  slot.start(depth);
  slot.advance(before);
  return turn_of(slot, before);
}

// The warp's part of one product against the operand at x, and its turn after it. Sums go to
// partials[row][slot][M]. Called: nothing else may take registers from it.
static __device__ __noinline__ unsigned multiply_rows(
    const gyre_token_product &q, const char *ring, gyre_token_shared &s, int depth, const char *x,
    float *partials, unsigned turn) {
  int thread = this_thread(), lane = thread & 31, member = (thread >> 5) % TEAM;
  int rows = q.own_rows, step = q.step, slices = q.pieces, stages = q.stages;
  int row_bytes = q.columns * ELEMENT, slice_bytes = q.slice * ELEMENT, plane = plane_of(q.columns);
  int stage = turn >> 16, row = 0, piece = stage;
  for (; piece >= slices; piece -= slices) row += step;
  Slot slot{int(turn & 255), depth, turn >> 8 & 1};
  ring += lane * 16, x += lane * 16;
  for (; stage < stages; stage += TEAMS) {
    int bytes = min(slice_bytes, row_bytes - piece * slice_bytes), last = min(row + step, rows);
    // The member's columns.
    int each = (bytes / TEAM + LINE - 1) / LINE * LINE, from = min(each * member, bytes);
    bytes = member + 1 < TEAM ? min(each, bytes - from) : bytes - from;
    const char *at = ring + slot.at * GYRE_TOKEN_STAGE + from;
    const char *operand = x + piece * slice_bytes + from;
    float *to = partials + row * PARTIAL_ROW + (piece % TEAMS * TEAM + member) * M;
    stage_await(s.full + slot.at, slot.parity);
#pragma unroll 1
    for (int r = row; r < last; r += GYRE_TOKEN_ROWS) {
      Sums sums;
      sums.clear();
      int i = 0;
#pragma unroll 1
      for (; i + LINES * LINE <= bytes; i += LINES * LINE)
        sums.take<LINES>(at + i, slice_bytes, operand + i, plane, true);
#pragma unroll 1
      for (; i < bytes; i += LINE)
        sums.take<1>(at + i, slice_bytes, operand + i, plane, i + lane * 16 < bytes);
      sums.leave(to, lane, last - r, piece >= TEAMS);
      at += GYRE_TOKEN_ROWS * slice_bytes;
      to += GYRE_TOKEN_ROWS * PARTIAL_ROW;
    }
    __syncwarp();
    if (lane == 0) stage_release(s.empty + slot.at);
    slot.advance(TEAMS);
    for (piece += TEAMS; piece >= slices; piece -= slices) row += step;
  }
  return turn_of(slot, stage - stages);
}
