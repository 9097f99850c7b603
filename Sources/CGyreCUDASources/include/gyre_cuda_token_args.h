// Arguments of one token of a whole model in one launch: cuda/token_step.cu, cuda/token_sample.cu.
// A table of phases in device memory says what happens. What phases hand on are numbers beside the stamp
// of the phase that wrote them: whoever needs a number waits for its stamp, and nobody for the grid.
// B sequences (at most the variant's) lie `stride` apart.
#pragma once
#include "gyre_cuda_args.h"

#define GYRE_TOKEN_THREADS 256    // that compute: more would have too few registers; a warp that copies weights and one for small things join them
#define GYRE_TOKEN_LAUNCH (GYRE_TOKEN_THREADS + 64)
#define GYRE_TOKEN_ROWS 4         // of a matrix that a warp multiplies together
#define GYRE_TOKEN_SLICE 4096     // most bytes of a row that come together
#define GYRE_TOKEN_STAGE (GYRE_TOKEN_ROWS * GYRE_TOKEN_SLICE)  // bytes of weights that come together
#define GYRE_TOKEN_DEPTH 12       // most stages of a block's ring
#define GYRE_TOKEN_PARTIALS 4096  // most floats of warps' sums that a block keeps; twice as many for four rows
#define GYRE_TOKEN_PRODUCTS 8
#define GYRE_TOKEN_OPERANDS 6
#define GYRE_TOKEN_MOVES 2
#define GYRE_TOKEN_RANGES 16
#define GYRE_TOKEN_TILE 32        // most columns of a matrix state that a block takes
#define GYRE_TOKEN_KEYS 256       // largest K of a matrix state and size of an attention head
#define GYRE_TOKEN_TAPS 8         // most taps of a convolution
#define GYRE_TOKEN_WORK 6144      // least floats for operands: what states and attention need
#define GYRE_TOKEN_DESCRIBED 3    // phases whose description a block holds

// Numbers of the token: 8 bytes each, the float32 and the stamp of phase `phase`. Phase -1: plain float32.
typedef struct gyre_token_vector {
  GYRE_CUDA_PTR(char) data;
  int stride, phase;
} gyre_token_vector;

// What a product multiplies, made anew by every block.
enum {
  GYRE_TOKEN_COPY = 0,
  GYRE_TOKEN_NORM = 1,   // over groups of `group`: x or x * act(z) normalised, weighed, (+ v * score), (* act(z))
  GYRE_TOKEN_SHIFT = 2,  // mixes operand 0, before its own mix, with the last token's
};
typedef struct gyre_token_operand {
  int kind, size, group, centers;
  gyre_token_vector x, z, v, score;  // score: one a group
  GYRE_CUDA_PTR(const float) weight;
  GYRE_CUDA_PTR(const float) bias;
  GYRE_CUDA_PTR(const float) mix;
  GYRE_CUDA_PTR(const float) last;  // [B, size] of SHIFT: the last token
  gyre_token_vector keep;  // of NORM: where the block 0 leaves the result; or absent
  float epsilon;
  int gate;      // 0: none, 1: after, 2: before the norm
  int function;  // of z
  int period;    // of weight and bias
  int path, offset;        // made on the card: how it is made; its place among the phase's operands
} gyre_token_operand;

enum {
  GYRE_TOKEN_SET = 0,      // y = f(Wx + b)
  GYRE_TOKEN_ADD = 1,      // y = alpha * old + beta * (Wx + b)
  GYRE_TOKEN_GATED = 2,    // y = f(W1 x) * (W2 x), W of 2 * rows
  GYRE_TOKEN_MIN_GRU = 3,  // old = y = (1 - s(W1 x)) * old + s(W1 x) * g(W2 x)
  GYRE_TOKEN_CAP = 4,      // y = alpha * tanh(Wx / alpha)
};
typedef struct gyre_token_product {
  GYRE_CUDA_PTR(const float) bias;
  gyre_token_vector y, old;  // old: of ADD what y was; of MIN_GRU the state
  float alpha, beta;
  int rows, first;  // outputs, and those of the phase before them
  int columns, slice;  // columns that come together
  int operand, rule, function;  // function: position in Unary.Kind, or -1
  int paired;
  int step, pieces;  // rows of a stage; slices of a row
  // Made on the card: the block's first output, outputs, rows before them, rows (two an output of a pair), the
  // operand's place; of the first, the block's outputs of all.
  int from, own, before, own_rows, offset, outputs;
  int scaled, unused;  // whether the operand lacks its norm's scale, which outputs take
} gyre_token_product;

// The same as the stream of weights sees it.
typedef struct gyre_token_entry {
  GYRE_CUDA_PTR(const char) weight;
  int rows, first, total, columns, slice, paired;
  int step, pieces;  // rows of a stage; slices of a row
} gyre_token_entry;

// Work beside a phase's own: to = from, or the window of a convolution moved on by one token.
typedef struct gyre_token_move {
  gyre_token_vector from;
  GYRE_CUDA_PTR(float) to;  // [B, stride]
  int stride, count, taps, unused;  // taps 0: a copy
} gyre_token_move;

enum { GYRE_TOKEN_LINEAR = 0, GYRE_TOKEN_DELTA = 1, GYRE_TOKEN_RWKV7 = 2 };
// S = diag(d) S + b (a' S) + k v',  y = scale * S' q + skip * v: units of a head and up to 32 columns.
typedef struct gyre_token_matrix {
  int rule, heads, key_heads, keys, values, taps, channels, function;
  int q, k, v, is_first;  // offsets in x; RWKV-7: whether this layer's v is the first
  gyre_token_vector x;
  GYRE_CUDA_PTR(const float) taps_weight;
  GYRE_CUDA_PTR(const float) taps_bias;
  GYRE_CUDA_PTR(const float) window;  // [B, taps - 1, channels]
  gyre_token_vector gate, write;  // before softplus; before the sigmoid of beta
  GYRE_CUDA_PTR(const float) log_rate;
  GYRE_CUDA_PTR(const float) step_bias;
  GYRE_CUDA_PTR(const float) skip;
  int skip_per_channel, writes_twice;
  float step_low, step_high, scale, epsilon;
  GYRE_CUDA_PTR(float) state;  // [B, H, K, V]
  gyre_token_vector y;
  gyre_token_vector outer;  // y is multiplied by a usual function of it, or absent
  // RWKV-7: x holds r, k, v at q, k, v.
  gyre_token_vector decay, rate, mixed, first, value, score;
  GYRE_CUDA_PTR(const float) key_scale;
  GYRE_CUDA_PTR(const float) key_rate;
  GYRE_CUDA_PTR(const float) bonus;
  // Made on the card: tiles of a head and their columns; the block's first tile: its sequence, head, the head of
  // its keys, first column, columns.
  int tiles, width, sequence, head, key_head, column, own;
  int outer_function;
} gyre_token_matrix;

typedef struct gyre_token_attention {
  int heads, key_heads, size, rotated, interleaved, splits;
  int window, capacity, q, k, v;
  int exists;  // made on the card: whether the block has a part
  float scale, epsilon;
  double log_base;
  gyre_token_vector x;
  GYRE_CUDA_PTR(const float) query_norm;
  GYRE_CUDA_PTR(const float) key_norm;
  GYRE_CUDA_PTR(char) keys;    // [B, capacity, key_heads, size] in the weights' type
  GYRE_CUDA_PTR(char) values;
  gyre_token_vector y, sums;  // of parts: [splits, heads, size]; [splits, heads, 2]: largest, sum
  gyre_token_vector joined;   // [heads, size]
  // Made on the card: the block's first part: its sequence, head, keys; the place of old key 0 in a ring.
  int sequence, head, split, key_head, from, to, back, position;
} gyre_token_attention;

typedef struct gyre_token_embedding {
  gyre_array table;
  GYRE_CUDA_PTR(const float) weight;
  GYRE_CUDA_PTR(const float) bias;
  gyre_token_vector y;
  float factor, epsilon;
  int size, norm;  // 0: none, 1: RMS, 2: layer
} gyre_token_embedding;

typedef struct gyre_token_range {
  GYRE_CUDA_PTR(const char) data;
  long bytes;
} gyre_token_range;

enum {
  GYRE_TOKEN_PRODUCT_PHASE = 0,
  GYRE_TOKEN_MATRIX_PHASE = 1,
  GYRE_TOKEN_ATTENTION_PHASE = 2,
  GYRE_TOKEN_EMBEDDING_PHASE = 3,
};
typedef struct gyre_token_phase {
  int kind;
  int makes;    // operands; otherwise goes on with those there are
  int operands, products, moves, ranges;
  // Numbers of phase `awaited` that are there, nearly all, before its numbers are asked for; 0: not waited.
  int awaited, enough;
  int needed, unused;  // made on the card, a bit an operand: those that the block's own products take
  gyre_token_operand operand[GYRE_TOKEN_OPERANDS];
  gyre_token_product product[GYRE_TOKEN_PRODUCTS];
  gyre_token_move move[GYRE_TOKEN_MOVES];
  gyre_token_range range[GYRE_TOKEN_RANGES];  // brought nearer before the phase
  gyre_token_matrix matrix;
  gyre_token_attention attention;
  gyre_token_embedding embedding;
} gyre_token_phase;

typedef struct gyre_token_step_args {
  GYRE_CUDA_PTR(const gyre_token_phase) phases;
  GYRE_CUDA_PTR(const gyre_token_entry) entries;
  GYRE_CUDA_PTR(unsigned) counts;  // [2, phase_count]: numbers that phases have written, zero at first
  GYRE_CUDA_PTR(const int) tokens;   // [B]
  GYRE_CUDA_PTR(const int) position;  // another one at every launch: stamps come from it
  int phase_count, entry_count, batch;
  int operand_floats, partial_floats;  // of shared memory
  int depth, flight;  // stages of the ring; of them, at most under way
} gyre_token_step_args;

// At the beginning of shared memory; the ring, operands and the warps' sums follow.
typedef struct gyre_token_shared {
  float sums[32];  // read in fours
  // A computing warp's place in the ring and its phase; the launch's first stamp, its half of the counts. In
  // registers they would go to the stack at every call, for which there is hardly a cache beside the ring.
  int place[GYRE_TOKEN_THREADS / 32], now[GYRE_TOKEN_THREADS / 32];
  int base, half;
  GYRE_CUDA_PTR(unsigned) counts;  // the launch's half
  int operands, unused[3];         // where operands begin
  // Of an operand whose norm's scale outputs take: squares of each sequence over the size, a sum a warp.
  float squares[4][GYRE_TOKEN_THREADS / 32];
  // What outputs take besides their sums, and which they are.
  float old[GYRE_TOKEN_THREADS][4], bias[GYRE_TOKEN_THREADS][2];
  int output[GYRE_TOKEN_THREADS][2];
  gyre_token_phase phase[GYRE_TOKEN_DESCRIBED];
  unsigned long full[GYRE_TOKEN_DEPTH], empty[GYRE_TOKEN_DEPTH];  // barriers of the ring's stages
  // Barriers of phases, in turn: it is described; its operands are there; its moves are done.
  unsigned long ready[GYRE_TOKEN_DESCRIBED], begun[GYRE_TOKEN_DESCRIBED], moved[GYRE_TOKEN_DESCRIBED];
  int rotated;  // what `turn` is for
  double log_base;
  float turn[2][GYRE_TOKEN_KEYS / 2];  // cosines and sines of the position
} gyre_token_shared;

// MARK: token_sample.cu

#define GYRE_TOKEN_SAMPLE_THREADS 1024
// One block a sequence draws the next token from logits, as GyreInference.Sampler does.
typedef struct gyre_token_sample_args {
  GYRE_CUDA_PTR(float) logits;  // [B, logit_stride]
  long logit_stride;
  GYRE_CUDA_PTR(int) tokens;    // [B]: the next
  GYRE_CUDA_PTR(int) output;    // [slots, B], the ring that the host reads; NaN logits: -1
  GYRE_CUDA_PTR(int) position;   // [B], all equal
  GYRE_CUDA_PTR(long) draws;    // [B]
  GYRE_CUDA_PTR(int) recent;    // [B, window]
  GYRE_CUDA_PTR(int) recent_count;  // [B]
  unsigned long seed, stream;
  double temperature, top_p, min_p;
  float penalty;
  int vocabulary, top_k, window, slots, batch;
  int keeps_token;  // the host gives the next token: only the position moves on
} gyre_token_sample_args;
