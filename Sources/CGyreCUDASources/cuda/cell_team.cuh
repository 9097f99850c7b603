// Cells with recurrent weights that stay in registers: a head's units are dealt out to the blocks of a
// team that are all on the chip at once, and what the next product needs goes from every block to all
// others through memory (mostly the second-level cache) at every token.
//
// There is no barrier. The memory of a token's exchange is filled with a pattern before the launch
// that a rounded bfloat16 never has, and a reader waits until the pattern is gone: the number is its
// own flag. One round trip through the cache a product, no atomics, sums in a fixed order.
//
// Shapes of one compilation: GYRE_CELL, the cell; GYRE_TILES, blocks of eight rows of the batch;
// GYRE_GROUPS, groups of 32 operands that a warp multiplies.
#pragma once
#include "gyre_cuda_engine_args.h"
#include "mma.cuh"
#include "prelude.cuh"

#ifndef GYRE_CELL
#define GYRE_CELL 4
#endif
#ifndef GYRE_TILES
#define GYRE_TILES 2
#endif
#ifndef GYRE_GROUPS
#define GYRE_GROUPS 3
#endif
enum { ELMAN_TANH, ELMAN_RELU, GRU, GRU_ORIGINAL, LSTM, SLSTM };
enum { CELL = GYRE_CELL, TILES = GYRE_TILES, GROUPS = GYRE_GROUPS, ROWS = 8 * TILES };
enum { GATES = CELL <= ELMAN_RELU ? 1 : CELL <= GRU_ORIGINAL ? 3 : 4 };
#define PENDING 0xffffffffu
#ifndef GYRE_PROBE
#define GYRE_PROBE 1
#endif

GYRE_DEVICE uint4 look(const uint4 *p) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
  return v;
}
GYRE_DEVICE void tell(u32 *p, u32 v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
GYRE_DEVICE bool is_pending(const uint4 &v) {
  return v.x == PENDING || v.y == PENDING || v.z == PENDING || v.w == PENDING;
}
#ifdef GYRE_SPIN_LIMIT  // of a test: an error instead of a hang
#define SPIN(v, p)                                                                  \
  for (long spins = 0; is_pending(v) && spins < GYRE_SPIN_LIMIT; spins++) v = look(p)
#else
#define SPIN(v, p) \
  while (is_pending(v)) v = look(p)
#endif

// Operands of one product of a team: [tokens][groups of 32][tiles][32 lanes][8], so that a warp reads
// its share of eight rows with one wide access a lane. Lane 4 r + q has operands 8 q to 8 q + 7 of row r.
struct Exchange {
  u16 *base;     // of the team
  long stride;   // elements of a token
  int operands;
  GYRE_DEVICE Exchange(u16 *all, int operands, long team, long slots) : operands(operands) {
    stride = (long)((operands + 31) / 32) * TILES * 256;
    base = all + team * slots * stride;
  }
  GYRE_DEVICE u16 *place(long slot, int row, int k) const {
    return base + slot * stride +
           ((((k >> 5) * TILES + (row >> 3)) * 32 + (row & 7) * 4 + ((k >> 3) & 3)) << 3) + (k & 7);
  }
  GYRE_DEVICE const uint4 *group(long slot, int group, int tile, int lane) const {
    return (const uint4 *)(base + slot * stride) + (group * TILES + tile) * 32 + lane;
  }
};

// Writes an operand: lanes hold successive units, pairs go together. All lanes of the warp come here.
GYRE_DEVICE void send(const Exchange &e, long slot, int row, int k, float x, bool valid) {
  float next = __shfl_down_sync(~0u, x, 1);
  if (valid && !(k & 1)) tell((u32 *)e.place(slot, row, k), pack2(x, next));
}

// Products of MT tiles of 16 weight rows with a warp's groups of operands, added to sum. As many
// groups at a time as keep the registers. Where there are several, one is waited for before the others
// are asked for: asking for all again and again keeps the cache from answering.
template <int MT, int N>
GYRE_DEVICE void multiply(
    float (&sum)[MT][TILES][4], const u32 (&weight)[N][2][MT][4], const Exchange &e, long slot,
    int first, int rows) {
  const int lane = threadIdx.x & 31, row = lane >> 2;
  constexpr int AT_ONCE = N < 4 ? N : TILES == 1 ? 4 : 3;
  if (GYRE_PROBE && N * TILES > 2 && first * 32 + (lane & 3) * 8 < e.operands && row < rows) {
    uint4 v = look(e.group(slot, first, 0, lane));
    SPIN(v, e.group(slot, first, 0, lane));
  }
  __syncwarp();
#pragma unroll
  for (int start = 0; start < N; start += AT_ONCE) {
    uint4 v[AT_ONCE][TILES];
    bool wanted[AT_ONCE][TILES];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++)
#pragma unroll
      for (int n = 0; n < TILES; n++) {
        const int group = first + start + i;
        wanted[i][n] = start + i < N && group * 32 + (lane & 3) * 8 < e.operands && n * 8 + row < rows;
        v[i][n] = make_uint4(0, 0, 0, 0);
        if (wanted[i][n]) v[i][n] = look(e.group(slot, group, n, lane));
      }
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      if (start + i >= N) break;
#pragma unroll
      for (int n = 0; n < TILES; n++)
        if (wanted[i][n]) SPIN(v[i][n], e.group(slot, first + start + i, n, lane));
      __syncwarp();
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < TILES; n++) {
          mma(sum[m][n], weight[start + i][0][m], v[i][n].x, v[i][n].y);
          mma(sum[m][n], weight[start + i][1][m], v[i][n].z, v[i][n].w);
        }
    }
  }
}

// Half the instructions of tanhf, exact to a few units in the last place away from 0 and to 1e-7 there.
GYRE_DEVICE float hyperbolic(float x) {
  float e = __expf(-2.f * fabsf(x));
  return copysignf(__fdividef(1.f - e, 1.f + e), x);
}
GYRE_DEVICE float logistic(float x) {
  return __fdividef(1.f, 1.f + __expf(-x));
}

// A unit of a row among the arrays.
struct Place {
  long b, hu, H, state;
  GYRE_DEVICE long at(const gyre_cell_team_args &a, long t) const {
    return (b * a.tokens + t) * H + hu;
  }
  GYRE_DEVICE long gate(const gyre_cell_team_args &a, long t, int i) const {
    return ((b * a.tokens + t) * GATES + i) * H + hu;
  }
};
