// AMX's tile instructions by plain C, for builds with GYRE_EMULATED_TILES (CONTRIBUTING.md): so that the tile kernels
// can be checked where a processor has AVX-512 with bfloat16 but no tiles. Slow; values as the instructions give them
// but for the order of the two additions of a pair.
#pragma once
#include "tile_configuration.h"
#include <immintrin.h>
#include <string.h>

#define CK_EMULATED \
  static inline __attribute__((unused, target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq"))) void
enum { CK_TILE_COUNT = 8, CK_TILE_ROWS = 16, CK_TILE_BYTES = 64 };

static _Thread_local struct ck_tile_configuration ck_tiles;
static _Thread_local uint8_t ck_tile[CK_TILE_COUNT][CK_TILE_ROWS][CK_TILE_BYTES];

CK_EMULATED ck_tile_load(int t, const void *from, long stride) {
  memset(ck_tile[t], 0, sizeof ck_tile[t]);
  for (int r = 0; r < ck_tiles.rows[t]; r++)
    memcpy(ck_tile[t][r], (const char *)from + r * stride, ck_tiles.row_bytes[t]);
}

CK_EMULATED ck_tile_store(int t, void *to, long stride) {
  for (int r = 0; r < ck_tiles.rows[t]; r++)
    memcpy((char *)to + r * stride, ck_tile[t][r], ck_tiles.row_bytes[t]);
}

// c += a b, pairs of bfloat16 along the rows of a and from row to row of b.
CK_EMULATED ck_tile_pairs(int c, int a, int b) {
  const int columns = ck_tiles.row_bytes[c] / 4;
  for (int k = 0; k < ck_tiles.row_bytes[a] / 4; k++) {
    float first[CK_TILE_BYTES / 4], second[CK_TILE_BYTES / 4];
    for (int n = 0; n < columns; n++) {
      uint32_t pair;
      memcpy(&pair, ck_tile[b][k] + 4 * n, sizeof pair);
      const uint32_t low = pair << 16, high = pair & 0xFFFF0000u;
      memcpy(first + n, &low, sizeof low);
      memcpy(second + n, &high, sizeof high);
    }
    for (int m = 0; m < ck_tiles.rows[c]; m++) {
      uint32_t pair;
      memcpy(&pair, ck_tile[a][m] + 4 * k, sizeof pair);
      const uint32_t low = pair << 16, high = pair & 0xFFFF0000u;
      float x, y, sums[CK_TILE_BYTES / 4];
      memcpy(&x, &low, sizeof x);
      memcpy(&y, &high, sizeof y);
      memcpy(sums, ck_tile[c][m], sizeof sums);
      for (int n = 0; n < columns; n++) sums[n] = sums[n] + x * first[n] + y * second[n];
      memcpy(ck_tile[c][m], sums, sizeof sums);
    }
  }
}

// c += a b, four int8 where pairs were above.
CK_EMULATED ck_tile_fours(int c, int a, int b) {
  for (int m = 0; m < ck_tiles.rows[c]; m++)
    for (int k = 0; k < ck_tiles.row_bytes[a] / 4; k++)
      for (int n = 0; n < ck_tiles.row_bytes[c] / 4; n++) {
        int32_t sum;
        memcpy(&sum, ck_tile[c][m] + 4 * n, sizeof sum);
        for (int i = 0; i < 4; i++)
          sum += (int32_t)(int8_t)ck_tile[a][m][4 * k + i] * (int8_t)ck_tile[b][k][4 * n + i];
        memcpy(ck_tile[c][m] + 4 * n, &sum, sizeof sum);
      }
}

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#define _tile_loadconfig(from) memcpy(&ck_tiles, from, sizeof ck_tiles)
#define _tile_release() ((void)0)
#define _tile_zero(t) memset(ck_tile[t], 0, sizeof ck_tile[t])
#define _tile_loadd(t, from, stride) ck_tile_load(t, from, (long)(stride))
#define _tile_stream_loadd(t, from, stride) ck_tile_load(t, from, (long)(stride))
#define _tile_stored(t, to, stride) ck_tile_store(t, to, (long)(stride))
#define _tile_dpbf16ps(c, a, b) ck_tile_pairs(c, a, b)
#define _tile_dpbssd(c, a, b) ck_tile_fours(c, a, b)
