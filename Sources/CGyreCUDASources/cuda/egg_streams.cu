// EGG before its forward pass: weights as operands of products, and the noise of tiles of members in the
// order in which `egg_forward.cu` reads it. Layouts: gyre_cuda_egg_args.h.
#include "egg.cuh"

enum record_kind { OF_B, OF_A, PLUS, MINUS };
struct record {
  leaf l;
  int kind, chunk;
};

GYRE_DEVICE record described(const leaf &l, int kind, int chunk) { return {l, kind, chunk}; }

/// Which numbers record `o` of a layer holds.
GYRE_DEVICE record layer_record(int layer, int o) {
  constexpr int C = CHUNKS;
  if (o < 4 * C) {
    const int k = o % 4;
    return described(layer_leaf(layer, k < 2 ? LN1 : k == 2 ? WF : WH), k < 2 ? PLUS + k : OF_B, o / 4);
  }
  if (o < 5 * C) return described(layer_leaf(layer, WF), OF_A, o - 4 * C);
  if (o < 6 * C) return described(layer_leaf(layer, WH), OF_A, o - 5 * C);
  if (o < 7 * C) return described(layer_leaf(layer, UF), OF_B, o - 6 * C);
  if (o < 11 * C) {
    const int k = (o - 7 * C) % 4;
    return described(layer_leaf(layer, k == 0 ? UF : k == 3 ? UH : BF),
                     k == 0 ? OF_A : k == 3 ? OF_B : PLUS + k - 1, (o - 7 * C) / 4);
  }
  if (o < 14 * C) {
    const int k = (o - 11 * C) % 3;
    return described(layer_leaf(layer, k == 0 ? UH : BH), k == 0 ? OF_A : PLUS + k - 1,
                     (o - 11 * C) / 3);
  }
  if (o < 17 * C) {
    const int k = (o - 14 * C) % 3;
    return described(layer_leaf(layer, k == 2 ? UP : LN2), k == 2 ? OF_B : PLUS + k, (o - 14 * C) / 3);
  }
  if (o < 25 * C) {
    const int k = (o - 17 * C) % 2;
    return described(layer_leaf(layer, k == 0 ? UP : DOWN), k == 0 ? OF_A : OF_B, (o - 17 * C) / 2);
  }
  return described(layer_leaf(layer, DOWN), OF_A, o - 25 * C);
}

GYRE_DEVICE record record_of(int layers, int o) {
  if (o < CHUNKS) return described(embedding_leaf(), OF_B, o);
  o -= CHUNKS;
  if (o < layers * LAYER_RECORDS) return layer_record(o / LAYER_RECORDS, o % LAYER_RECORDS);
  o -= layers * LAYER_RECORDS;
  if (o < 3 * CHUNKS)
    return described(o % 3 == 2 ? head_leaf(layers) : norm_leaf(layers), o % 3 == 2 ? OF_B : PLUS + o % 3,
                     o / 3);
  return described(head_leaf(layers), OF_A, o - 3 * CHUNKS);
}

/// clip(p + (s u >> SHIFT)) of four entries.
GYRE_DEVICE u32 moved(const s8 *p, int i, int count, u32 low, u32 high, int sign) {
  u32 word = 0;
#pragma unroll
  for (int k = 0; k < 4; k++) {
    const u32 z = k < 2 ? low : high;
    const int u = byte_of(z, 2 * (k % 2)) * byte_of(z, 2 * (k % 2) + 1);
    int v = (i + k < count ? p[i + k] : 0) + ((sign * u) >> SHIFT);
    v = i + k < count ? min(max(v, -127), 127) : 0;
    word |= (u32)(v & 255) << 8 * k;
  }
  return word;
}

// Grid (records + 4, tiles), 128 threads: the last four blocks make the embedding's A.
GYRE_KERNEL egg_streams(gyre_egg_streams_args a) {
  __shared__ s8 table[256];
  fill_table(a.noise, table);
  const int t = threadIdx.x, o = blockIdx.x;
  const long tile = blockIdx.y, first_pair = (a.first_tile + tile) * GYRE_EGG_PAIRS;
  if (o >= a.records) {
    const int item = (o - (int)a.records) * 128 + t, p = item % 32, i = item / 32 * 16;
    const uint4 found = numbers(a.noise, table, embedding_leaf(), true, i, first_pair + p);
    s8 *to = a.embedding + tile * VOCABULARY * GYRE_EGG_PAIRS;
#pragma unroll
    for (int k = 0; k < 16; k++) to[(i + k) * GYRE_EGG_PAIRS + p] = byte_of(word_of(found, k / 4), k % 4);
    return;
  }
  const long pair = first_pair + t / 32 * 8 + t % 32 / 4;
  const record r = record_of((int)a.layers, o);
  const int i = 64 * r.chunk + 16 * (t % 4);
  uint4 found;
  if (r.kind == OF_B || r.kind == OF_A) {
    found = numbers(a.noise, table, r.l, r.kind == OF_A, i, pair);
  } else {
    const uint4 low = numbers(a.noise, table, r.l, false, 2 * i, pair);
    const uint4 high = numbers(a.noise, table, r.l, false, 2 * i + 16, pair);
    const s8 *p = a.weights + r.l.weight;
    const int sign = r.kind == PLUS ? 1 : -1;
    found = make_uint4(moved(p, i, WIDTH, low.x, low.y, sign), moved(p, i + 4, WIDTH, low.z, low.w, sign),
                       moved(p, i + 8, WIDTH, high.x, high.y, sign),
                       moved(p, i + 12, WIDTH, high.z, high.w, sign));
  }
  ((uint4 *)(a.streams + (tile * a.records + o) * RECORD))[t] = found;
}

/// What a piece covers: `outputs` from `row` on, and the inputs from `column` on.
struct piece_part {
  leaf l;
  int row, column, outputs;
};
/// Piece i of a matrix whose inputs are in `splits` parts, in the order of deep products.
GYRE_DEVICE piece_part deep_part(const leaf &l, int i, int splits) {
  return {l, 64 * (i / (WIDE * splits) * WIDE + i % WIDE), 64 * DEEP * (i / WIDE % splits), 64};
}
GYRE_DEVICE piece_part part_of(int layers, int piece) {
  constexpr int SQUARE = CHUNKS * SPLITS;
  const int layer = piece / LAYER_PIECES, j = piece % LAYER_PIECES;
  if (layer >= layers) {
    const int i = piece - layers * LAYER_PIECES;
    if (IS_WIDE) return deep_part(head_leaf(layers), i, SPLITS);
    return {head_leaf(layers), 64 * i, 0, 64};
  }
  if (j < 4 * SQUARE) {
    const int which = j / SQUARE;
    return deep_part(layer_leaf(layer, which == 0 ? WF : which == 1 ? WH : which == 2 ? UF : UH), j % SQUARE,
                     SPLITS);
  }
  const int i = j - 4 * SQUARE;
  if (IS_WIDE)
    return i < 4 * SQUARE ? deep_part(layer_leaf(layer, UP), i, SPLITS)
                          : deep_part(layer_leaf(layer, DOWN), i - 4 * SQUARE, 4 * SPLITS);
  if (i % 2) return {layer_leaf(layer, DOWN), 0, 64 * (i / 2), PADDED};
  return {layer_leaf(layer, UP), 64 * (i / 2), 0, 64};
}

// One thread for 16 bytes.
GYRE_KERNEL egg_pack(gyre_egg_pack_args a) {
  constexpr int GROUPS = PIECE / 16;
  const long of_pieces = a.pieces_count * GROUPS, all = of_pieces + VOCABULARY * (PADDED / 16);
  for (long at = blockIdx.x * (long)blockDim.x + threadIdx.x; at < all; at += (long)gridDim.x * blockDim.x) {
    u32 words[4] = {0, 0, 0, 0};
    if (at >= of_pieces) {
      const int row = (int)(at - of_pieces) / (PADDED / 16), first = (int)(at - of_pieces) % (PADDED / 16) * 16;
      for (int i = 0; i < 16 && first + i < WIDTH; i++)
        words[i / 4] |= (u32)(unsigned char)a.weights[row * WIDTH + first + i] << 8 * (i % 4);
      ((uint4 *)a.emb)[at - of_pieces] = make_uint4(words[0], words[1], words[2], words[3]);
      continue;
    }
    const piece_part part = part_of((int)a.layers, (int)(at / GROUPS));
    const leaf &l = part.l;
    const int group = (int)(at % GROUPS) / part.outputs, n = (int)(at % GROUPS) % part.outputs;
    // Column 8 j + 2 q + e of a product is feature 16 q + 2 j + e, and so is its place as an input.
    const int row = part.row + n / 64 * 64 + 16 * (n / 2 % 4) + 2 * (n % 64 / 8) + n % 2;
    const int column = part.column + group / 4 * 64 + group % 4 * 4;
    for (int i = 0; i < 16; i++) {
      const int c = column + 16 * (i / 4) + i % 4;
      if (row < l.rows && c < l.columns)
        words[i / 4] |= (u32)(unsigned char)a.weights[l.weight + (long)row * l.columns + c] << 8 * (i % 4);
    }
    ((uint4 *)a.pieces)[at] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}
