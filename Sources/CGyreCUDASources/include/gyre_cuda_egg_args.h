// Arguments of egg_forward.cu and egg_update.cu, and the layouts that their kernels share.
//
// A tile is 64 members on 128 threads: thread t holds the members 2p and 2p + 1 of pair p = 8 (t / 32) +
// t % 32 / 4 of the tile, and of every chunk of 64 features the 16 that follow 16 (t % 4). So it finds its
// part of a product's sums in its own registers, and packs it into the operand of the next product.
//
// Widths are padded to a multiple of 64, those above GYRE_EGG_NARROW to one of 64 GYRE_EGG_DEEP; what pads is 0.
#pragma once
#include "gyre_cuda_args.h"

enum { GYRE_EGG_NO_NOISE = 0, GYRE_EGG_STORED = 1, GYRE_EGG_GENERATED = 2 };
enum { GYRE_EGG_TILE = 64, GYRE_EGG_PAIRS = 32, GYRE_EGG_THREADS = 128, GYRE_EGG_RECORD = 2048 };
// Widest model whose activations stay on the multiprocessor, and chunks of inputs of a piece beyond it.
enum { GYRE_EGG_NARROW = 256, GYRE_EGG_DEEP = 4 };
// Pairs whose votes are summed by one launch are a multiple of this.
enum { GYRE_EGG_VOTE_PAIRS = 64 };

// Number i of a leaf and a pair: see EggNoise.
typedef struct gyre_egg_noise {
  int kind;
  unsigned epoch, first_pair;  // of the call's first two members
  unsigned key[2];             // the seed
  int stored_row;              // numbers of a pair
  long pairs;
  GYRE_CUDA_PTR(const signed char) stored;
  signed char magnitudes[128];
} gyre_egg_noise;

// pieces: the weights in the order of use, each piece the operand of one product of 64 outputs and all
// inputs, or of 64 inputs and all outputs: [inputs / 16][outputs][16]. Of wide models 64 outputs and a part of
// the inputs, two pieces of different outputs after each other. emb: [256][padded width].
typedef struct gyre_egg_pack_args {
  long layers, pieces_count;
  GYRE_CUDA_PTR(const signed char) weights;
  GYRE_CUDA_PTR(signed char) pieces;
  GYRE_CUDA_PTR(signed char) emb;
} gyre_egg_pack_args;

// What members of tiles `first_tile`, ... read of their noise: records of 16 bytes a thread in the order
// of use, one window of them for all tokens, and of the embedding [tile][256][32 pairs].
typedef struct gyre_egg_streams_args {
  gyre_egg_noise noise;
  long layers, first_tile, records;
  GYRE_CUDA_PTR(const signed char) weights;
  GYRE_CUDA_PTR(signed char) streams;
  GYRE_CUDA_PTR(signed char) embedding;
} gyre_egg_streams_args;

// One window of tokens. `working` holds the tiles' states in records; `stages` pieces fit shared memory;
// `buffers`, of wide models alone, eight times the chunks of a tile in records of two rows.
typedef struct gyre_egg_forward_args {
  long members, first_tile, layers, tokens, group, records;
  int stages, unused;
  GYRE_CUDA_PTR(const unsigned char) text;       // [rows, tokens + 1]
  GYRE_CUDA_PTR(const signed char) state;        // [members, layers, D]
  GYRE_CUDA_PTR(signed char) state_out;
  GYRE_CUDA_PTR(int) fitness;                    // [members]
  GYRE_CUDA_PTR(signed char) logits;             // [members, 256] or absent
  GYRE_CUDA_PTR(const signed char) pieces;
  GYRE_CUDA_PTR(const signed char) emb;
  GYRE_CUDA_PTR(const signed char) streams;
  GYRE_CUDA_PTR(const signed char) embedding;
  GYRE_CUDA_PTR(signed char) working;
  GYRE_CUDA_PTR(signed char) buffers;
} gyre_egg_forward_args;

// Votes of `count` pairs from `first` on, added to z [parameters]. Factors of a matrix m x n, rows padded to
// multiples of 128: sign A then B as [pairs / 16][rows][16].
typedef struct gyre_egg_vote_args {
  gyre_egg_noise noise;
  long layers, first, count, pairs;
  GYRE_CUDA_PTR(const signed char) signs;        // [pairs]
  GYRE_CUDA_PTR(signed char) factors;
  GYRE_CUDA_PTR(int) z;
} gyre_egg_vote_args;

// The step of every weight; `carried` may be absent.
typedef struct gyre_egg_move_args {
  long count;
  int limit, unused;
  GYRE_CUDA_PTR(const signed char) weights;
  GYRE_CUDA_PTR(signed char) weights_out;
  GYRE_CUDA_PTR(const int) z;
  GYRE_CUDA_PTR(const int) carried;
  GYRE_CUDA_PTR(int) carried_out;
} gyre_egg_move_args;
