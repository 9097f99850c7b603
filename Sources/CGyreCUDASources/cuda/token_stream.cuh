// The weights of a token as one stream a block. A block's share of a product is rows; they come in stages
// of four rows (or several fours of short ones) and up to 4 KB of each, through a ring in shared memory,
// over the ends of products and phases, so that device memory works while the block waits for numbers.
// All computing warps take every stage, each its own columns of at most 512 bytes, whose numbers it holds in
// registers for all rows: of long rows all first columns come, then all next.
//
// bfloat16 weights go through tensor cores as they come: a lane's 16 bytes are eight columns of one of four rows,
// which fill two rows of sixteen; so a product multiplies four rows by four blocks of columns, and each block
// meets its own numbers, as the sum of two bfloat16, in two of eight columns. One chain from a stage's bytes to
// its sums takes hundreds of clocks however short it is, so several stages go through it at once.
#pragma once
#include "token_machine.cuh"

// Element type of weights, rows of a batch.
#ifndef TOKEN_VARIANT
#define TOKEN_VARIANT 0
#endif
#define WEIGHTS_ARE_FLOAT (TOKEN_VARIANT & 1)
#define M ((TOKEN_VARIANT & 2) ? 4 : 1)
#define ELEMENT (WEIGHTS_ARE_FLOAT ? 4 : 2)
#define PARTIAL_ROW (WARPS * M + 4)  // floats of a row's sums, one a warp: banks are met in turn
#define PARTS (WEIGHTS_ARE_FLOAT ? 1 : 2)
#define LINE 128  // bytes of a row that a product of four rows takes
#define UNITS (M == 1 ? 2 : 1)  // fours of rows that a warp takes through one chain

// Bytes of an operand of one sequence: float32, or the sum of bfloat16 in two planes. So columns of weights and
// of a plane lie at the same offsets.
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
  GYRE_DEVICE void advance() {
    bool wraps = at + 1 == depth;
    at = wraps ? 0 : at + 1;
    parity ^= wraps;
  }
};

// The copying warp. At most `flight` stages are under way: memory is busy with fewer bytes than the ring
// holds, and what blocks say to each other must not queue behind the others.
GYRE_DEVICE void copy_stream(const gyre_token_step_args &a) {
  char *ring = ring_of_block();
  gyre_token_shared &s = TOKEN_SHARED;
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
    while (piece < e.pieces) {
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
      if (sent >= a.depth) {
        barrier_await(&s.empty[slot.at], slot.parity ^ 1);
        stage_fence(false);
      }
      if (sent >= a.flight) {
        barrier_await(&s.full[oldest.at], oldest.parity);
        oldest.advance();
      }
      stage_expect(full, (end - row) * bytes, lane);
      stage_copy(to, source, count * bytes, full, lane, runs);
      stage_end(full);
      slot.advance();
      sent++;
      row = end;
      if (row >= rows) row = 0, piece++;
    }
  }
}

// Two floats as bfloat16 in one word, the first below.
GYRE_DEVICE unsigned two_halves(float x, float y) {
  unsigned w;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(y), "f"(x));
  return w;
}
// Two numbers of an operand from element e on, an even one, in one sequence's planes.
GYRE_DEVICE void put_two(char *to, int plane, int e, float x, float y) {
#if WEIGHTS_ARE_FLOAT
  *(float2 *)(to + e * 4) = make_float2(x, y);
#else
  unsigned w = two_halves(x, y);
  *(unsigned *)(to + e * 2) = w;
  *(unsigned *)(to + plane + e * 2) =
      two_halves(x - __uint_as_float(w << 16), y - __uint_as_float(w & 0xffff0000u));
#endif
}
GYRE_DEVICE void put_one(char *to, int plane, int e, float x) {
#if WEIGHTS_ARE_FLOAT
  *(float *)(to + e * 4) = x;
#else
  unsigned w = two_halves(x, 0.f);
  *(unsigned short *)(to + e * 2) = (unsigned short)w;
  *(unsigned short *)(to + plane + e * 2) =
      (unsigned short)two_halves(x - __uint_as_float(w << 16), 0.f);
#endif
}

// A place in the ring as a word, so that nobody keeps it in registers between phases.
GYRE_DEVICE int word_of(const Slot &slot) { return slot.at | slot.parity << 8; }
GYRE_DEVICE Slot slot_of(int word, int depth) { return Slot{word & 255, depth, (unsigned)word >> 8}; }

#if WEIGHTS_ARE_FLOAT
// The numbers that a warp's columns meet: a lane has four of them.
template <int LINES> struct Numbers {
  float x[M][4];
  int at;
  GYRE_DEVICE Numbers(const char *p, int plane, int first, int each, int bytes, int lane) {
    int offset = first + lane * 16;
    bool exists = lane * 16 < each && offset < bytes;
    at = exists ? offset : 0;
#pragma unroll
    for (int m = 0; m < M; m++) {
      float4 y = exists ? *(const float4 *)(p + m * plane + offset) : make_float4(0.f, 0.f, 0.f, 0.f);
      x[m][0] = y.x, x[m][1] = y.y, x[m][2] = y.z, x[m][3] = y.w;
    }
  }
};
// Four rows of a stage and their sums.
template <int LINES> struct Unit {
  float4 w[GYRE_TOKEN_ROWS];
  float x[GYRE_TOKEN_ROWS][M];
  GYRE_DEVICE void load(const Numbers<LINES> &y, const char *from, int stride, int lane) {
#pragma unroll
    for (int r = 0; r < GYRE_TOKEN_ROWS; r++) w[r] = *(const float4 *)(from + r * stride + y.at);
  }
  GYRE_DEVICE void multiply(const Numbers<LINES> &y) {
#pragma unroll
    for (int r = 0; r < GYRE_TOKEN_ROWS; r++)
#pragma unroll
      for (int m = 0; m < M; m++)
        x[r][m] = w[r].x * y.x[m][0] + w[r].y * y.x[m][1] + (w[r].z * y.x[m][2] + w[r].w * y.x[m][3]);
  }
  // Of row lane / 8, to be added up over its eight lanes.
  GYRE_DEVICE float own(int m, int lane) const {
    return halves(halves(x[0][m], x[2][m], lane, 16), halves(x[1][m], x[3][m], lane, 16), lane, 8);
  }
  template <int COUNT> static GYRE_DEVICE void add_lanes(float (&sums)[COUNT][M]) {
#pragma unroll
    for (int bit = 4; bit; bit >>= 1)
#pragma unroll
      for (int i = 0; i < COUNT * M; i++)
        sums[i / M][i % M] += __shfl_xor_sync(~0u, sums[i / M][i % M], bit);
  }
  // Each of two lanes keeps one of x and y, and adds what the other has of it.
  static GYRE_DEVICE float halves(float x, float y, int lane, int bit) {
    bool upper = lane & bit;
    float sent = __shfl_xor_sync(~0u, upper ? x : y, bit);
    return (upper ? y : x) + sent;
  }
};
#else
// The numbers that a warp's columns meet, as the tensor cores take them: column n of eight is one part of what
// block n / 2 meets. Blocks are half of a line and two of the four words of a lane's 16 bytes.
template <int LINES> struct Numbers {
  unsigned b[M][LINES][2];
  int at[LINES];
  GYRE_DEVICE Numbers(const char *p, int plane, int first, int each, int bytes, int lane) {
    int part = lane >> 2 & 1, half = lane >> 3 & 1, chunk = (lane >> 4) * 4 + (lane & 3);
#pragma unroll
    for (int i = 0; i < LINES; i++) {
      int offset = first + i * LINE + chunk * 16, own = first + i * LINE + (lane & 7) * 16;
      bool exists = i * LINE < each && offset < bytes;
      // What does not exist is read somewhere and multiplied by zero.
      at[i] = i * LINE < each && own < bytes ? own : 0;
#pragma unroll
      for (int m = 0; m < M; m++) {
        const unsigned *from = (const unsigned *)(p + (m * PARTS + part) * plane + offset) + half;
        b[m][i][0] = exists ? from[0] : 0;
        b[m][i][1] = exists ? from[2] : 0;
      }
    }
  }
};
GYRE_DEVICE void product(float (&d)[4], const uint4 &w, const unsigned (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w), "r"(b[0]), "r"(b[1]));
}
// Four rows of a stage and their sums.
template <int LINES> struct Unit {
  uint4 w[LINES];
  float d[M][4];
  GYRE_DEVICE void load(const Numbers<LINES> &y, const char *from, int stride, int lane) {
    from += (lane >> 3) * stride;
#pragma unroll
    for (int i = 0; i < LINES; i++) w[i] = *(const uint4 *)(from + y.at[i]);
  }
  GYRE_DEVICE void multiply(const Numbers<LINES> &y) {
#pragma unroll
    for (int i = 0; i < M * 4; i++) d[i >> 2][i & 3] = 0.f;
#pragma unroll
    for (int i = 0; i < LINES; i++)
#pragma unroll
      for (int m = 0; m < M; m++) product(d[m], w[i], y.b[m][i]);
  }
  // Of row lane / 8, a block's each in lanes 0, 1, 6 and 7 of its eight.
  GYRE_DEVICE float own(int m, int lane) const {
    return lane & 1 ? d[m][2] + d[m][3] : d[m][0] + d[m][1];
  }
  template <int COUNT> static GYRE_DEVICE void add_lanes(float (&sums)[COUNT][M]) {
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int i = 0; i < COUNT * M; i++)
        sums[i / M][i % M] += __shfl_xor_sync(~0u, sums[i / M][i % M], n ? 6 : 1);
  }
};
#endif

// The warp's phase, read anew after calls: see `gyre_token_shared`.
GYRE_DEVICE int now() { return word_kept(shared_anew().now + (this_thread() >> 5)); }
GYRE_DEVICE gyre_token_phase &described(int n) { return shared_anew().phase[n % GYRE_TOKEN_DESCRIBED]; }
GYRE_DEVICE const gyre_token_phase &phase_now() { return described(now()); }
// Once a phase, behind a barrier of the computing warps: its operands are there, and nobody reads the description
// of the phase before any longer.
GYRE_DEVICE void begin_phase() {
  if (arrives(this_thread() == 64)) phase_arrive(shared_anew().begun, now());
}

// A warp's way through the stages of a product's columns.
struct Walk {
  Slot slot;
  int unit, per, stride;  // of the stage's fours of rows; bytes from row to row
  // COUNT fours of rows of which `rows` rows are left. Hardly a branch: each would end what can overlap.
  template <int COUNT, int LINES>
  GYRE_DEVICE void take(const Numbers<LINES> &y, float *to, int rows, bool adds, int lane) {
    Unit<LINES> units[COUNT];
    int at[COUNT], place[COUNT];
    unsigned parity[COUNT];
    bool last[COUNT], all = true;
#pragma unroll
    for (int j = 0; j < COUNT; j++) {
      at[j] = slot.at, parity[j] = slot.parity;
      place[j] = slot.at * GYRE_TOKEN_STAGE + (LINES > 2 ? 0 : unit * GYRE_TOKEN_ROWS * stride);
      // Rows of more than half a slice are four a stage.
      last[j] = LINES > 2 || unit + 1 == per || rows <= (j + 1) * GYRE_TOKEN_ROWS;
      unit = last[j] ? 0 : unit + 1;
      if (last[j]) slot.advance();
    }
#pragma unroll
    for (int j = 0; j < COUNT; j++) all = barrier_is_over(TOKEN_SHARED.full + at[j], parity[j]) && all;
    if (!all) {
#pragma unroll
      for (int j = 0; j < COUNT; j++) barrier_await(TOKEN_SHARED.full + at[j], parity[j]);
    }
#pragma unroll
    for (int j = 0; j < COUNT; j++) units[j].load(y, ring_of_block() + place[j], stride, lane);
    float *own = to + (lane >> 3) * PARTIAL_ROW, old[COUNT][M];
    int left = (lane & 7) == 0 ? rows - (lane >> 3) : 0;
#pragma unroll
    for (int j = 0; j < COUNT; j++)
#pragma unroll
      for (int m = 0; m < M; m++)
        old[j][m] = adds && j * GYRE_TOKEN_ROWS < left ? own[j * GYRE_TOKEN_ROWS * PARTIAL_ROW + m] : 0.f;
    stage_fence(true);
    __syncwarp();
#pragma unroll
    for (int j = 0; j < COUNT; j++)
      if (last[j] && arrives(lane == 0)) barrier_arrive(TOKEN_SHARED.empty + at[j]);
#pragma unroll
    for (int j = 0; j < COUNT; j++) units[j].multiply(y);
    float sums[COUNT][M];
#pragma unroll
    for (int j = 0; j < COUNT; j++)
#pragma unroll
      for (int m = 0; m < M; m++) sums[j][m] = units[j].own(m, lane);
    Unit<LINES>::add_lanes(sums);
#pragma unroll
    for (int j = 0; j < COUNT; j++)
#pragma unroll
      for (int m = 0; m < M; m++)
        if (j * GYRE_TOKEN_ROWS < left)
          own[j * GYRE_TOKEN_ROWS * PARTIAL_ROW + m] = old[j][m] + sums[j][m];
  }
  template <int COUNT, int LINES>
  GYRE_DEVICE void units(const Numbers<LINES> &y, float *to, int rows, bool adds, int lane) {
#pragma unroll 1
    for (; rows > (COUNT - 1) * GYRE_TOKEN_ROWS; rows -= COUNT * GYRE_TOKEN_ROWS) {
      take<COUNT>(y, to, rows, adds, lane);
      to += COUNT * GYRE_TOKEN_ROWS * PARTIAL_ROW;
    }
    if constexpr (COUNT > 1)
      if (rows > 0) units<COUNT / 2>(y, to, rows, adds, lane);
  }
  template <int LINES>
  GYRE_DEVICE void columns(
      const char *x, int plane, int each, int bytes, float *to, int rows, bool adds, int thread) {
    Numbers<LINES> y(x, plane, (thread >> 5) * each, each, bytes, thread & 31);
    units<UNITS>(y, to, rows, adds, thread & 31);
  }
};

// The warp's part of a phase's products; sums go to partials[row][warp][M]. Called, and what is needed once a
// product is read then: registers are the chains'.
static __device__ __noinline__ void multiply_rows(int depth, int operand_floats) {
  int thread = this_thread(), warp = thread >> 5;
  gyre_token_shared &s = TOKEN_SHARED;
  Walk walk{slot_of(word_kept(s.place + warp), depth), 0, 0, 0};
  const gyre_token_phase &p = phase_now();
#pragma unroll 1
  for (int i = 0; i < word_kept(&p.products); i++) {
    const gyre_token_product *q = p.product + i;
    if (word_kept(&q->own_rows) == 0) continue;
#pragma unroll 1
    for (int from = 0, left; from < (left = word_kept(&q->columns) * ELEMENT); from += walk.stride) {
      int slice = word_kept(&q->slice) * ELEMENT, bytes = min(slice, left - from);
      int each = (slice + WARPS * LINE - 1) / (WARPS * LINE) * LINE, rows = word_kept(&q->own_rows);
      const char *operands = operands_of_block(), *x = operands + word_kept(&q->offset) + from;
      float *to = (float *)operands + operand_floats + word_kept(&q->before) * PARTIAL_ROW + warp * M;
      walk.stride = slice;
      walk.per = word_kept(&q->step) / GYRE_TOKEN_ROWS;
      int plane = plane_of(left / ELEMENT);
      if (each > 2 * LINE) walk.columns<4>(x, plane, each, bytes, to, rows, from > 0, thread);
      else walk.columns<2>(x, plane, each, bytes, to, rows, from > 0, thread);
    }
  }
  __syncwarp();
  if ((thread & 31) == 0) word_write(s.place + warp, word_of(walk.slot));
}
