// Products of a described cell whose units mix (cell_rows.cuh), and how the blocks of a team tell each
// other what they multiply.
//
// A number that is told is its own flag, as in cell_team.cuh: the memory of a launch's exchange is
// filled with PENDING before, which no number that is told has, and a reader waits until it is gone.
// One way through the second-level cache, no barrier, no atomics, sums in a fixed order.
#pragma once

enum { ROW_THREADS = 512 };
#define PENDING 0xffffffffu

// The units and rows of a block.
struct Team {
  long first_row, told;
  int rows, slice, slices;
  float *exchange, *gathered;
  GYRE_DEVICE Team(const gyre_described_args &a, float *gathered) : told(a.told), gathered(gathered) {
    slice = blockIdx.x, slices = (int)a.slices;
    first_row = a.first_row + blockIdx.y * a.rows;
    rows = (int)min(a.rows, a.batch - first_row);
    exchange = a.exchange + blockIdx.y * (a.last - a.first) * told;
  }
  GYRE_DEVICE int low(long width) const { return (int)(width * slice / slices); }
  GYRE_DEVICE int own(long width) const { return (int)(width * (slice + 1) / slices) - low(width); }
};
// Floats of a tile: for every row the units that a block has at most; a multiple of four.
GYRE_DEVICE long tile_size(const gyre_described_args &a, int space) {
  return (a.rows * ((a.widths[space] + a.slices - 1) / a.slices) + 3) / 4 * 4;
}

// A unit of a row: its number among the block's and in the batch.
struct Unit {
  long u, b;
  GYRE_DEVICE Unit(const Team &team, int i, int own, int low) {
    int row = i / own;
    u = low + i - row * own;
    b = team.first_row + row;
  }
};
// Every unit of a space in every row, over the threads of a block; i is its place in a tile.
#define EACH_UNIT(space)                                                                           \
  for (int i = threadIdx.x, own = team.own(a.widths[space]), low = team.low(a.widths[space]);      \
       i < own * team.rows; i += blockDim.x)                                                       \
    if (const Unit v(team, i, own, low); true)

// Numbers of a vector that one product or several need: the heads of the block's units.
struct Need {
  int low = 1 << 30, high = 0;
  GYRE_DEVICE void add(const Team &team, long rows, long columns, int heads) {
    const int own = team.own(rows), first = team.low(rows);
    if (own == 0) return;
    const int R = (int)rows / heads, C = (int)columns / heads;
    low = min(low, first / R * C);
    high = max(high, ((first + own - 1) / R + 1) * C);
  }
};

GYRE_DEVICE uint4 look4(const float *p) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
  return v;
}
// Places of a vector's rows in the exchange are multiples of four apart.
GYRE_DEVICE long told_width(long width) { return (width + 3) / 4 * 4; }

// Tells the team the block's part of a vector; `at` is the vector's place at the token.
GYRE_DEVICE void tell_team(const Team &team, long slot, long at, const float *tile, long width) {
  if (team.slices == 1) return;
  float *out = team.exchange + slot * team.told + at;
  const int own = team.own(width), low = team.low(width);
  for (int i = threadIdx.x; i < own * team.rows; i += blockDim.x) {
    int row = i / own;
    unsigned bits = __float_as_uint(tile[i]);
    if (bits == PENDING) bits = 0x7fffffffu;  // another of the numbers that are none
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;"
                 ::"l"(out + row * told_width(width) + low + i - row * own), "r"(bits) : "memory");
  }
}

// The whole vector of every row, [rows, width], as soon as all have told theirs. Ends with a barrier.
__device__ __noinline__ const float *hear_team(
    const Team &team, long slot, long at, const float *tile, long width, const Need &need) {
  if (team.slices == 1) return tile;
  const float *in = team.exchange + slot * team.told + at;
  const int stride = (int)told_width(width);
  const int first = need.low / 4, pieces = need.high > 0 ? (need.high + 3) / 4 - first : 0;
  const int count = pieces * team.rows;
  constexpr int AT_ONCE = 4;
  for (int start = threadIdx.x; start < count; start += AT_ONCE * blockDim.x) {
    uint4 v[AT_ONCE];
    const float *place[AT_ONCE];
    int row[AT_ONCE], column[AT_ONCE];
#pragma unroll
    for (int k = 0; k < AT_ONCE; k++) {
      const int i = min(start + k * (int)blockDim.x, count - 1);
      row[k] = i / pieces, column[k] = (first + i - row[k] * pieces) * 4;
      place[k] = in + row[k] * stride + column[k];
      v[k] = look4(place[k]);
    }
#pragma unroll
    for (int k = 0; k < AT_ONCE; k++) {
      const int valid = (int)width - column[k];  // beyond it nothing is told
      while (v[k].x == PENDING || (valid > 1 && v[k].y == PENDING) ||
             (valid > 2 && v[k].z == PENDING) || (valid > 3 && v[k].w == PENDING))
        v[k] = look4(place[k]);
      float *out = team.gathered + row[k] * width + column[k];
      const unsigned bits[4] = {v[k].x, v[k].y, v[k].z, v[k].w};
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j < valid) out[j] = __uint_as_float(bits[j]);
    }
  }
  __syncthreads();
  return team.gathered;
}

// N rows of W times four rows of the batch; V numbers a load.
template <int N, int V>
GYRE_DEVICE void product_tile(
    float (&sum)[N][4], const float *const (&w)[N], const float *const (&x)[4], int C) {
#pragma unroll 2
  for (int c = (threadIdx.x & 31) * V; c < C; c += 32 * V) {
    float wv[N][V], xv[4][V];
#pragma unroll
    for (int i = 0; i < N; i++) {
      if (V == 4) *(float4 *)wv[i] = *(const float4 *)(w[i] + c);
      else wv[i][0] = w[i][c];
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (V == 4) *(float4 *)xv[j] = *(const float4 *)(x[j] + c);
      else xv[j][0] = x[j][c];
    }
#pragma unroll
    for (int k = 0; k < V; k++)
#pragma unroll
      for (int i = 0; i < N; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] += wv[i][k] * xv[j][k];
  }
}

// The sums of sixteen numbers over a warp: lanes 2 k and 2 k + 1 get number k.
GYRE_DEVICE float sums_of_16(const float (&sum)[4][4]) {
  const int lane = threadIdx.x & 31;
  float v[16];
#pragma unroll
  for (int i = 0; i < 16; i++) v[i] = sum[i >> 2][i & 3];
#pragma unroll
  for (int half = 8, bit = 16; half > 0; half >>= 1, bit >>= 1) {
    const bool upper = lane & bit;
#pragma unroll
    for (int i = 0; i < half; i++) {
      const float mine = upper ? v[i + half] : v[i], other = upper ? v[i] : v[i + half];
      v[i] = mine + __shfl_xor_sync(~0u, other, bit);
    }
  }
  return v[0] + __shfl_xor_sync(~0u, v[0], 1);
}

// y = W v, head by head, for the block's rows of W, [heads or 1, rows / heads, columns / heads], and all
// its rows of the batch; x is [rows of the batch, columns]. Warps take four rows of each in turn;
// `done` counts on over the products between two barriers, so that all warps get some.
__device__ __noinline__ int team_product(
    const Team &team, int done, const float *W, float *y, const float *x, long rows, long columns,
    int heads, bool is_shared) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  const int R = (int)rows / heads, C = (int)columns / heads;
  const int low = team.low(rows), own = team.own(rows), across = (team.rows + 3) / 4;
  const int tasks = (own + 3) / 4 * across;
  for (int task = (warp + warps - done % warps) % warps; task < tasks; task += warps) {
    const int first = task / across * 4, row = task % across * 4;
    int head[4];
    const float *w[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int r = low + min(first + i, own - 1);
      head[i] = r / R;
      w[i] = W + (long)(is_shared ? r - head[i] * R : r) * C;
    }
    const float *from[4];
#pragma unroll
    for (int j = 0; j < 4; j++) from[j] = x + min(row + j, team.rows - 1) * columns;
    if (head[0] == head[3]) {
      float sum[4][4] = {};
      const float *const v[4] = {from[0] + head[0] * C, from[1] + head[0] * C, from[2] + head[0] * C,
                                 from[3] + head[0] * C};
      if (C % 4 == 0 && ((unsigned long)W & 15) == 0) product_tile<4, 4>(sum, w, v, C);
      else product_tile<4, 1>(sum, w, v, C);
      const float total = sums_of_16(sum);
      const int i = lane >> 3, j = (lane >> 1) & 3;
      if (!(lane & 1) && first + i < own && row + j < team.rows)
        y[(row + j) * own + first + i] = total;
      continue;
    }
    for (int i = 0; i < 4 && first + i < own; i++) {
      float sum[1][4] = {};
      const int r = low + first + i, h = r / R;
      const float *const one[1] = {W + (long)(is_shared ? r - h * R : r) * C};
      const float *const v[4] = {from[0] + h * C, from[1] + h * C, from[2] + h * C, from[3] + h * C};
      product_tile<1, 1>(sum, one, v, C);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float total = warp_sum(sum[0][j]);
        if (lane == 0 && row + j < team.rows) y[(row + j) * own + first + i] = total;
      }
    }
  }
  return done + tasks;
}

GYRE_KERNEL cell_transpose(const __grid_constant__ gyre_cell_transpose_args a) {
  const long size = a.rows * a.columns;
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < a.heads * size;
       i += (long)gridDim.x * blockDim.x) {
    const long head = i / size, c = i % size / a.rows, r = i % a.rows;
    a.y[i] = a.x[head * size + r * a.columns + c];
  }
}
