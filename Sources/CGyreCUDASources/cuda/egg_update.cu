// The vote that moves EGG's weights: Z = sum over pairs of sign A B' for matrices, of sign z z' for
// vectors. Whole numbers: exact in any order.
#include "egg.cuh"

__device__ constexpr int padded(int rows) { return (rows + 127) / 128 * 128; }
constexpr int SQUARE = padded(WIDTH), TALL = padded(4 * WIDTH);
constexpr int ENDS = VOCABULARY + SQUARE;                        // factor rows of emb, and of head
constexpr int LAYER_ROWS = 10 * SQUARE + 2 * TALL;
constexpr int ACROSS = SQUARE / 128, HIGH = TALL / 128;          // tiles
constexpr int END_TILES = VOCABULARY / 128 * ACROSS;
constexpr int LAYER_TILES = 4 * ACROSS * ACROSS + 2 * ACROSS * HIGH;

/// Number `i` of A or B of a leaf.
struct factor_row {
  leaf l;
  bool of_a;
  int i;
};
GYRE_DEVICE factor_row within(const leaf &l, int rows, int row) {
  return {l, row < rows, row < rows ? row : row - rows};
}
GYRE_DEVICE int square_leaf(int i) { return i == 0 ? WF : i == 1 ? UF : i == 2 ? WH : UH; }

GYRE_DEVICE factor_row factor_at(int layers, int row) {
  if (row < ENDS) return within(embedding_leaf(), VOCABULARY, row);
  row -= ENDS;
  const int layer = row / LAYER_ROWS;
  if (layer >= layers) return within(head_leaf(layers), VOCABULARY, row - layers * LAYER_ROWS);
  row %= LAYER_ROWS;
  if (row < 8 * SQUARE)
    return within(layer_leaf(layer, square_leaf(row / (2 * SQUARE))), SQUARE, row % (2 * SQUARE));
  row -= 8 * SQUARE;
  if (row < TALL + SQUARE) return within(layer_leaf(layer, UP), TALL, row);
  return within(layer_leaf(layer, DOWN), SQUARE, row - TALL - SQUARE);
}

/// Four words of four bytes, rows and columns exchanged.
GYRE_DEVICE uint4 turned(u32 a, u32 b, u32 c, u32 d) {
  const u32 low = __byte_perm(a, b, 0x5140), high = __byte_perm(a, b, 0x7362);
  const u32 low2 = __byte_perm(c, d, 0x5140), high2 = __byte_perm(c, d, 0x7362);
  return make_uint4(__byte_perm(low, low2, 0x5410), __byte_perm(low, low2, 0x7632),
                    __byte_perm(high, high2, 0x5410), __byte_perm(high, high2, 0x7632));
}

// One thread: 16 numbers of four pairs. Threads over [count / 16][rows / 16][4].
GYRE_KERNEL egg_vote_factors(gyre_egg_vote_args a) {
  __shared__ s8 table[256];
  fill_table(a.noise, table);
  const int rows = 2 * ENDS + (int)a.layers * LAYER_ROWS;
  const long all = a.count / 16 * (rows / 16) * 4;
  for (long item = blockIdx.x * (long)blockDim.x + threadIdx.x; item < all; item += (long)gridDim.x * blockDim.x) {
    const int quad = (int)(item % 4), row = (int)(item / 4 % (rows / 16)) * 16;
    const long group = item / 4 / (rows / 16), pair = a.first + 16 * group + 4 * quad;
    const factor_row f = factor_at((int)a.layers, row);
    uint4 v[4];
#pragma unroll
    for (int p = 0; p < 4; p++) {
      v[p] = numbers(a.noise, table, f.l, f.of_a, f.i, pair + p);
      const int sign = pair + p < a.pairs ? a.signs[pair + p] : 0;
      if (f.of_a && sign < 0)
        v[p] = make_uint4(__vneg4(v[p].x), __vneg4(v[p].y), __vneg4(v[p].z), __vneg4(v[p].w));
      if (sign == 0) v[p] = make_uint4(0, 0, 0, 0);
    }
    u32 *to = (u32 *)(a.factors + (group * rows + row) * 16) + quad;
#pragma unroll
    for (int w = 0; w < 4; w++) {
      const uint4 t = turned(word_of(v[0], w), word_of(v[1], w), word_of(v[2], w), word_of(v[3], w));
      to[16 * w] = t.x, to[16 * w + 4] = t.y, to[16 * w + 8] = t.z, to[16 * w + 12] = t.w;
    }
  }
}

struct vote_tile {
  leaf l;
  int a, b;          // factor rows
  int row, column;   // of the matrix
};
GYRE_DEVICE vote_tile tile_of(const leaf &l, int first, int rows, int tile, int across) {
  const int row = tile / across * 128, column = tile % across * 128;
  return {l, first + row, first + rows + column, row, column};
}
GYRE_DEVICE vote_tile vote_tile_at(int layers, int tile) {
  if (tile < END_TILES) return tile_of(embedding_leaf(), 0, VOCABULARY, tile, ACROSS);
  tile -= END_TILES;
  const int layer = tile / LAYER_TILES;
  int first = ENDS + layer * LAYER_ROWS;
  if (layer >= layers)
    return tile_of(head_leaf(layers), ENDS + layers * LAYER_ROWS, VOCABULARY, tile - layers * LAYER_TILES, ACROSS);
  tile %= LAYER_TILES;
  constexpr int EACH = ACROSS * ACROSS, TALL_TILES = ACROSS * HIGH;
  if (tile < 4 * EACH)
    return tile_of(layer_leaf(layer, square_leaf(tile / EACH)), first + tile / EACH * 2 * SQUARE, SQUARE,
                   tile % EACH, ACROSS);
  tile -= 4 * EACH, first += 8 * SQUARE;
  if (tile < TALL_TILES) return tile_of(layer_leaf(layer, UP), first, TALL, tile, ACROSS);
  return tile_of(layer_leaf(layer, DOWN), first + TALL + SQUARE, SQUARE, tile - TALL_TILES, HIGH);
}

constexpr int VOTE_STAGES = 3, VOTE_GROUPS = GYRE_EGG_VOTE_PAIRS / 16, VOTE_HALF = VOTE_GROUPS * 128 * 16;

GYRE_DEVICE void ldmatrix(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

// Grid (tiles of 128 x 128, parts of the pairs), 256 threads: warps take 64 x 32 each.
extern "C" __global__ void __launch_bounds__(256) egg_votes(gyre_egg_vote_args a) {
  __shared__ __align__(128) s8 memory[VOTE_STAGES * 2 * VOTE_HALF];
  const vote_tile tile = vote_tile_at((int)a.layers, blockIdx.x);
  const long rows = 2 * ENDS + a.layers * LAYER_ROWS, steps = a.count / GYRE_EGG_VOTE_PAIRS;
  const long begin = steps * blockIdx.y / gridDim.y, end = steps * (blockIdx.y + 1) / gridDim.y;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, down = warp / 4 * 64, right = warp % 4 * 32;
  const u32 base = (u32)__cvta_generic_to_shared(memory);
  int sums[4][4][4] = {};
  auto copy = [&](long step) {
    if (step < end) {
      const u32 to = base + (u32)((step - begin) % VOTE_STAGES) * 2 * VOTE_HALF;
      for (int i = threadIdx.x; i < 2 * VOTE_GROUPS * 128; i += 256) {
        const int half = i / (VOTE_GROUPS * 128), group = i / 128 % VOTE_GROUPS, row = i % 128;
        const s8 *from = a.factors + ((step * VOTE_GROUPS + group) * rows + (half ? tile.b : tile.a) + row) * 16;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i * 16), "l"(from) : "memory");
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  for (int i = 0; i < VOTE_STAGES - 1; i++) copy(begin + i);
  for (long step = begin; step < end; step++) {
    asm volatile("cp.async.wait_group %0;" ::"n"(VOTE_STAGES - 2) : "memory");
    __syncthreads();
    copy(step + VOTE_STAGES - 1);
    const u32 left = base + (u32)((step - begin) % VOTE_STAGES) * 2 * VOTE_HALF, top = left + VOTE_HALF;
    const int matrix = lane / 8, in_matrix = lane % 8;
#pragma unroll
    for (int k = 0; k < VOTE_GROUPS; k += 2) {
      u32 x[4][4], y[2][4];
#pragma unroll
      for (int m = 0; m < 4; m++)
        ldmatrix(x[m], left + (((k + matrix / 2) * 128 + down + 16 * m + matrix % 2 * 8 + in_matrix) * 16));
#pragma unroll
      for (int n = 0; n < 2; n++)
        ldmatrix(y[n], top + (((k + matrix % 2) * 128 + right + 16 * n + matrix / 2 * 8 + in_matrix) * 16));
#pragma unroll
      for (int m = 0; m < 4; m++)
#pragma unroll
        for (int n = 0; n < 4; n++)
          asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
              "{%8, %9}, {%0, %1, %2, %3};"
              : "+r"(sums[m][n][0]), "+r"(sums[m][n][1]), "+r"(sums[m][n][2]), "+r"(sums[m][n][3])
              : "r"(x[m][0]), "r"(x[m][1]), "r"(x[m][2]), "r"(x[m][3]), "r"(y[n / 2][n % 2 * 2]),
                "r"(y[n / 2][n % 2 * 2 + 1]));
    }
  }
#pragma unroll
  for (int m = 0; m < 4; m++)
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int row = tile.row + down + 16 * m + lane / 4 + i / 2 * 8;
        const int column = tile.column + right + 8 * n + lane % 4 * 2 + i % 2;
        if (row < tile.l.rows && column < tile.l.columns)
          atomicAdd(a.z + tile.l.weight + (long)row * tile.l.columns + column, sums[m][n][i]);
      }
}

// Grid (vectors times blocks of 8 entries, parts of the pairs), 128 threads: pairs.
GYRE_KERNEL egg_vote_vectors(gyre_egg_vote_args a) {
  __shared__ s8 table[256];
  fill_table(a.noise, table);
  constexpr int BLOCKS = (WIDTH + 7) / 8;
  const int vector = blockIdx.x / BLOCKS, i = blockIdx.x % BLOCKS * 8, layer = vector / 4, k = vector % 4;
  const leaf l = layer >= a.layers
                     ? norm_leaf((int)a.layers)
                     : layer_leaf(layer, k == 0 ? LN1 : k == 1 ? BF : k == 2 ? BH : LN2);
  int sums[8] = {};
  for (long pair = a.first + blockIdx.y * blockDim.x + threadIdx.x; pair < min(a.first + a.count, a.pairs);
       pair += (long)gridDim.y * blockDim.x) {
    const int sign = a.signs[pair];
    if (sign == 0) continue;
    const uint4 z = numbers(a.noise, table, l, false, 2 * i, pair);
#pragma unroll
    for (int e = 0; e < 8; e++) {
      const u32 word = word_of(z, e / 2);
      sums[e] += sign * byte_of(word, e % 2 * 2) * byte_of(word, e % 2 * 2 + 1);
    }
  }
#pragma unroll
  for (int e = 0; e < 8; e++) {
    for (int d = 16; d > 0; d /= 2) sums[e] += __shfl_xor_sync(~0u, sums[e], d);
    if (threadIdx.x % 32 == 0 && i + e < WIDTH) atomicAdd(a.z + l.weight + i + e, sums[e]);
  }
}

GYRE_KERNEL egg_move(gyre_egg_move_args a) {
  for (long i = blockIdx.x * (long)blockDim.x + threadIdx.x; i < a.count; i += (long)gridDim.x * blockDim.x) {
    long vote = a.z[i], steps = 0;
    const long limit = a.limit;
    if (a.carried_out) {
      vote += a.carried[i];
      if (vote >= limit || vote <= -limit) steps = vote / limit;
      a.carried_out[i] = (int)(vote - steps * limit);
    } else if (vote >= limit || vote <= -limit) {
      steps = vote > 0 ? 1 : -1;
    }
    a.weights_out[i] = (s8)min(max(a.weights[i] + steps, -127L), 127L);
  }
}
