// What the kernels of attention by tiles share: order of work, masks, rows of results.
//
// One group of four warps brings tiles through the copy engine, the others multiply. A block of threads
// stays on its multiprocessor and draws items (a block of queries or of keys of one head) until there
// are none: sections of few heads, so that their keys stay in the second-level cache, and within them
// long rows first. Who draws an item has no influence on its result.
#pragma once
#include "gyre_cuda_engine_args.h"
#include "prelude.cuh"
#include "wgmma.cuh"

#ifndef SIZE
#define SIZE 64
#endif
#define PANELS (SIZE / 64)

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

#define TILES_KERNEL(groups) extern "C" __global__ void __launch_bounds__(((groups) + 1) * 128, 1)
typedef gyre_attention_tile_args TileArgs;

DEV u16 *first_panel(unsigned char *shared) {
  return (u16 *)(shared + ((1024 - (shared_address(shared) & 1023)) & 1023));
}

// The register budget of 64 K words: one group that copies and two or three that multiply.
template <int GROUPS>
DEV void budget_to_copy() {
  fewer_registers<GROUPS == 2 ? 24 : 32>();
}
template <int GROUPS>
DEV void budget_to_multiply() {
  more_registers<GROUPS == 2 ? 240 : 160>();
}

/// One thread: the next item.
DEV int draw(int *drawn) {
  int item;
  asm volatile("atom.global.add.s32 %0, [%1], 1;" : "=r"(item) : "l"(drawn) : "memory");
  return item;
}
DEV void split(int item, int section, int rows, int blocks, int &block, int &row) {
  const int s = item / (section * blocks), rest = item - s * section * blocks;
  const int width = rows - s * section < section ? rows - s * section : section;
  block = rest / width;
  row = s * section + rest % width;
}

/// The first key that a place sees.
DEV int first_seen(const gyre_attention_args &a, int b, int h, int place) {
  int low = 0;
  if (a.first) {
    const int known = place < a.keys ? place : (int)a.keys - 1;
    low = a.first[((long)b * a.heads + h) * a.keys + known];
  }
  const int begin = a.window ? place - (int)a.window + 1 : 0;
  return begin > low ? begin : low;
}

/// An item of `height` queries of one head, over tiles of `width` keys.
struct QueryBlock {
  int b, h, key_head, start, past, first_tile, tiles;
  DEV_MEMBER QueryBlock(const TileArgs &t, int item, int height, int width) {
    const gyre_attention_args &a = t.a;
    const int blocks = ((int)a.queries + height - 1) / height;
    int block, row;
    split(item, t.section, (int)(a.batch * a.heads), blocks, block, row);
    b = row / (int)a.heads;
    h = row % (int)a.heads;
    key_head = h / (int)(a.heads / a.key_heads);
    past = (int)(a.keys - a.queries);
    start = (blocks - 1 - block) * height;
    const int end = start + height < a.queries ? start + height : (int)a.queries;
    first_tile = first_seen(a, b, h, past + start) / width;
    tiles = (past + end + width - 1) / width - first_tile;
  }
};
DEV int query_items(const gyre_attention_args &a, int height) {
  return (int)((a.queries + height - 1) / height * a.batch * a.heads);
}

/// The two rows of scores that a thread has part of, and the bounds of its warp's sixteen.
struct QueryRows {
  int query[2], place[2], low[2], lowest_place, highest_low;
  DEV_MEMBER QueryRows(const gyre_attention_args &a, const QueryBlock &w, int first) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      query[r] = first + (lane >> 2) + 8 * r;
      place[r] = w.past + query[r];
      low[r] = first_seen(a, w.b, w.h, place[r]);
    }
    lowest_place = w.past + first;
    highest_low = __shfl_sync(~0u, low[1], 31);
  }
  /// Sets scores with keys from j on that are not seen to `hidden`.
  template <int N>
  DEV_MEMBER void hide(float (&s)[N][4], int j) const {
    if (j + 8 * N - 1 <= lowest_place && j >= highest_low) return;
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int key = j + n * 8 + (threadIdx.x & 3) * 2 + (e & 1);
        if (key > place[e >> 1] || key < low[e >> 1]) s[n][e] = -INFINITY;
      }
    }
  }
};

/// Brings rows [row, row + 64 B) of one head into a tile of 64 B rows, whose panels are neighbours.
template <int B>
DEV void load_rows(
    u16 *tile, const gyre_tensor_map &map, int head, int row, int batch, u64 *barrier) {
#pragma unroll
  for (int p = 0; p < PANELS; p++) {
#pragma unroll
    for (int n = 0; n < B; n++)
      load_box(tile + (p * B + n) * PANEL, map, p * 64, head, row + n * 64, batch, barrier);
  }
}

/// d = a b' over the channels, or the same added to d: a tile of 64 rows, b one of 64 B.
template <int B>
DEV void rows_by_rows(float (&d)[B * 8][4], u64 a, u64 b) {
#pragma unroll
  for (int k = 0; k < SIZE / 16; k++) wgmma<0>(d, a + panel_step(k), b + panel_step(k, B * 64), k);
}
/// d += p b over the rows of b, a tile of 16 DEPTH rows.
template <int DEPTH>
DEV void weights_by_rows(float (&d)[SIZE / 8][4], const u32 (&p)[DEPTH][4], u64 b) {
#pragma unroll
  for (int k = 0; k < DEPTH; k++) wgmma<1>(d, p[k], b + turned_step(k), 1);
}
template <int N>
DEV void pack_weights(u32 (&p)[N / 2][4], const float (&s)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; n += 2) as_a(p[n / 2], s[n], s[n + 1]);
}

/// Rows of accumulators times a factor each, to elements from `at` on; columns beyond are left out.
DEV void write_rows(
    const gyre_array &to, const long (&at)[2], const bool (&exists)[2], const float (&c)[SIZE / 8][4],
    const float (&factor)[2], int columns) {
  const int quarter = threadIdx.x & 3;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    if (to.dtype != GYRE_BF16) {
#pragma unroll
      for (int n = 0; n < SIZE / 8; n++) {
        const int column = n * 8 + quarter * 2;
        if (!exists[r] || column >= columns) continue;
        store(to, at[r] + column, c[n][2 * r] * factor[r]);
        store(to, at[r] + column + 1, c[n][2 * r + 1] * factor[r]);
      }
      continue;
    }
#pragma unroll
    for (int n = 0; n < SIZE / 8; n += 4) {
      // Four lanes have two columns of each of four pieces: each comes to have one piece whole.
      u32 x[4];
#pragma unroll
      for (int m = 0; m < 4; m++)
        x[m] = pack2(c[n + m][2 * r] * factor[r], c[n + m][2 * r + 1] * factor[r]);
#pragma unroll
      for (int o = 1; o <= 2; o <<= 1) {
#pragma unroll
        for (int m = 0; m < 4; m++) {
          if (m & o) continue;
          const bool upper = quarter & o;
          const u32 other = __shfl_xor_sync(~0u, upper ? x[m] : x[m + o], o);
          if (upper) x[m] = other;
          else x[m + o] = other;
        }
      }
      const int column = (n + quarter) * 8;
      if (exists[r] && column < columns)
        *(uint4 *)((u16 *)to.data + at[r] + column) = make_uint4(x[0], x[1], x[2], x[3]);
    }
  }
}

#endif
