// EGG, the integer language model: what its kernels share. Compiled for one width: -DWIDTH=256.
#pragma once
#include "philox.cuh"
#include "gyre_cuda_egg_args.h"

#ifndef WIDTH
#define WIDTH 256
#endif
// 4 + sigma_shift.
#ifndef SHIFT
#define SHIFT 8
#endif

typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;

// Chunks of 64 features, and how many of them a piece of weights is deep.
constexpr bool IS_WIDE = WIDTH > GYRE_EGG_NARROW;
constexpr int DEEP = IS_WIDE ? GYRE_EGG_DEEP : (WIDTH + 63) / 64;
constexpr int CHUNKS = (WIDTH + 64 * DEEP - 1) / (64 * DEEP) * DEEP, SPLITS = CHUNKS / DEEP;
constexpr int PADDED = 64 * CHUNKS, VOCABULARY = 256;
constexpr int PIECE = 64 * 64 * DEEP, RECORD = GYRE_EGG_RECORD;
constexpr int LAYER_PIECES = 12 * CHUNKS * SPLITS, HEAD_PIECES = 4 * SPLITS;
constexpr int LAYER_RECORDS = 26 * CHUNKS, LAST_RECORDS = 3 * CHUNKS + 4;
constexpr int WIDE = CHUNKS % 2 == 0 ? 2 : 1;  // chunks of outputs whose sums are made together
constexpr long LAYER_WEIGHTS = 4L * WIDTH + 12L * WIDTH * WIDTH;

__device__ constexpr int root_of(int n) {
  int r = 0;
  while ((r + 1) * (r + 1) <= n) r++;
  return r;
}

// Parameters of a layer in their order; emb is before them, ln_out and head are behind.
enum layer_leaf { LN1, WF, UF, BF, WH, UH, BH, LN2, UP, DOWN, LAYER_LEAVES };

struct leaf {
  int number, rows, columns;  // columns 0: a vector of `rows`
  long weight, noise;         // its first weight, and its first stored number
};

GYRE_DEVICE leaf embedding_leaf() { return {0, VOCABULARY, WIDTH, 0, 0}; }
GYRE_DEVICE leaf layer_leaf(int layer, int which) {
  constexpr long D = WIDTH, LAYER_NOISE = 4 * 2 * D + 4 * 2 * D + 2 * 5 * D;
  leaf l = {1 + LAYER_LEAVES * layer + which, WIDTH, WIDTH, VOCABULARY * D + layer * LAYER_WEIGHTS,
            VOCABULARY + D + layer * LAYER_NOISE};
  for (int i = LN1; i <= which; i++) {
    const bool is_vector = i == LN1 || i == BF || i == BH || i == LN2;
    l.rows = i == UP ? 4 * WIDTH : WIDTH;
    l.columns = is_vector ? 0 : i == DOWN ? 4 * WIDTH : WIDTH;
    if (i == which) break;
    l.weight += is_vector ? D : (long)l.rows * l.columns;
    l.noise += is_vector ? 2 * D : l.rows + l.columns;
  }
  return l;
}
GYRE_DEVICE leaf norm_leaf(int layers) {
  leaf l = layer_leaf(layers, LN1);
  l.rows = WIDTH, l.columns = 0;
  return l;
}
GYRE_DEVICE leaf head_leaf(int layers) {
  leaf l = norm_leaf(layers);
  return {l.number + 1, VOCABULARY, WIDTH, l.weight + WIDTH, l.noise + 2 * WIDTH};
}

// MARK: noise

/// The numbers of the 256 bytes, in shared memory of the whole block.
GYRE_DEVICE void fill_table(const gyre_egg_noise &noise, s8 *table) {
  for (int i = threadIdx.x; i < 128; i += blockDim.x) {
    table[i] = noise.magnitudes[i];
    table[128 + i] = -noise.magnitudes[i];
  }
  __syncthreads();
}
GYRE_DEVICE u32 looked_up(u32 x, const s8 *table) {
  return (unsigned char)table[x & 255] | (u32)(unsigned char)table[x >> 8 & 255] << 8 |
         (u32)(unsigned char)table[x >> 16 & 255] << 16 | (u32)(unsigned char)table[x >> 24] << 24;
}
GYRE_DEVICE u32 keep_bytes(u32 x, int count) {
  return count >= 4 ? x : count <= 0 ? 0 : x & ((1u << 8 * count) - 1);
}

/// Numbers i ... i + 15 (i a multiple of 16) of B, or with `of_a` of A, of a leaf and a pair; 0 beyond.
GYRE_DEVICE uint4 numbers(const gyre_egg_noise &noise, const s8 *table, const leaf &l, bool of_a, int i,
                          long pair) {
  const int count = of_a ? l.rows : l.columns ? l.columns : 2 * l.rows, left = count - i;
  uint4 found = make_uint4(0, 0, 0, 0);
  if (noise.kind == GYRE_EGG_NO_NOISE || left <= 0) return found;
  if (pair >= noise.pairs) pair = noise.pairs - 1;
  if (noise.kind == GYRE_EGG_STORED) {
    const s8 *row = noise.stored + pair * noise.stored_row + l.noise + (of_a ? l.columns : 0) + i;
    u32 *words = &found.x;
    for (int k = 0; k < 16 && k < left; k++) words[k / 4] |= (u32)(unsigned char)row[k] << 8 * (k % 4);
    return found;
  }
  const u32 block = (of_a ? (1u << 31) / 16 : 0) + (u32)i / 16;
  found = philox(make_uint4(block, noise.first_pair + (u32)pair, (u32)l.number, noise.epoch), noise.key[0],
                 noise.key[1]);
  return make_uint4(keep_bytes(looked_up(found.x, table), left),
                    keep_bytes(looked_up(found.y, table), left - 4),
                    keep_bytes(looked_up(found.z, table), left - 8),
                    keep_bytes(looked_up(found.w, table), left - 12));
}

GYRE_DEVICE int byte_of(u32 x, int i) { return (int)(x << (24 - 8 * i)) >> 24; }
GYRE_DEVICE u32 word_of(const uint4 &x, int i) {
  return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w;
}
