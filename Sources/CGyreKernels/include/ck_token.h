// One token of a whole model: a list of phases that a team of threads walks together. A phase is cut
// among the threads; what it reads was written by phases before it, and all wait for each other between
// phases. Vectors are float32; B sequences go on together.
#pragma once
#include "ck_blocks.h"
#include "ck_gemm.h"
#include "ck_pointwise.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  CK_TOKEN_NO_FUNCTION = -1,
  CK_TOKEN_OPERANDS = 8,     // most operands or mixes of a phase
};

/// Element i of sequence b is data[b * stride + i].
struct ck_token_vector {
  float *data;
  long stride;
};

/// A matrix [rows, columns] as it is stored.
struct ck_token_weight {
  const void *data;
  bool is_blocks;            // `block` is its type, else `type`
  enum ck_gemm_type type;
  enum ck_block_type block;
};

/// x = norm(factor * E[token]).
struct ck_token_embedding {
  struct ck_token_weight table;
  long size;
  float factor;
  int norm;                  // 0: none, 1: RMS, 2: layer
  const float *weight, *bias; // [size] or NULL
  float epsilon;
  struct ck_token_vector y;
};

/// One query a head against cached keys and values; parts of a fixed number of tokens are left for the
/// operand that joins them.
struct ck_token_attention {
  long heads, key_heads, size;
  long window;               // tokens seen, 0 for all; caches are then rings of that many
  long capacity;             // tokens of room in a cache
  long q, k, v;              // where the streams have them
  float scale, epsilon;
  long rotated;              // channels that turn with the position
  bool interleaved;
  const float *cosines, *sines;  // [rotated / 2] of this token
  const float *query_norm, *key_norm;  // [size] or NULL
  struct ck_token_vector x;
  float *keys, *values;      // [B, capacity, key_heads, size]
  float *parts;              // [B, pieces, heads, size + 2]
};

enum ck_token_gate { CK_TOKEN_NO_GATE, CK_TOKEN_GATE_AFTER, CK_TOKEN_GATE_BEFORE };

/// What products multiply:
///
///     (norm(x [* f(z)]) * w + b [+ v * score of the group]) [* f(z)]
struct ck_token_operand {
  long size, group, period;  // channels; of a norm's group; after which w and b repeat
  struct ck_token_vector x, z, v, score;  // v absent: data NULL
  const float *weight, *bias; // or NULL
  bool norms, centers;
  float epsilon;
  enum ck_token_gate gate;
  int function;              // of z: enum ck_unary or CK_TOKEN_NO_FUNCTION
  const struct ck_token_attention *attention;  // x is its joined parts; or NULL
};

enum ck_token_rule {
  CK_TOKEN_SET,              // y = f(Wx + b)
  CK_TOKEN_ADD,              // y = alpha y + beta (Wx + b)
  CK_TOKEN_GATED,            // y = f(W1 x + b1) * (W2 x + b2), W of 2 * rows
  CK_TOKEN_MIN_GRU,          // y = state = (1 - s(W1 x)) state + s(W1 x) g(W2 x)
  CK_TOKEN_CAP,              // y = alpha tanh(Wx / alpha)
};

struct ck_token_product {
  struct ck_token_weight weight;
  const float *bias;         // or NULL
  long rows, columns;        // outputs; a paired weight has twice as many rows
  int operand;
  enum ck_token_rule rule;
  int function;
  float alpha, beta;
  struct ck_token_vector y, state;
};

/// The window [B, taps - 1, channels] of a convolution takes up a vector [channels].
struct ck_token_move {
  struct ck_token_vector from;
  float *window;
  long taps, channels;
};

struct ck_token_products {
  const struct ck_token_operand *operands;
  const struct ck_token_product *products;
  const struct ck_token_move *moves;
  long operand_count, product_count, move_count;
  // Token shift: operand i is x + (last - x) * mixes[i] for the one operand x. `last` is two vectors
  // [B, size] that are read and written in turn.
  const float *const *mixes; // or NULL
  long mix_count;
  float *last;
};

enum ck_token_matrix_rule { CK_TOKEN_MAMBA2, CK_TOKEN_DELTA, CK_TOKEN_RWKV7 };

/// S = d S + p (a' S) + k v', y = scale S' q + skip v, a head at a time.
struct ck_token_matrix {
  enum ck_token_matrix_rule rule;
  long heads, key_heads, keys, values;
  long q, k, v;              // where the streams have them
  struct ck_token_vector x;
  // A convolution before them, taps 0 for none.
  long taps, channels;
  const float *taps_weight;  // [taps, channels]
  const float *taps_bias;    // [channels] or NULL
  const float *window;       // [B, taps - 1, channels]
  int function;              // of the streams
  struct ck_token_vector gate, write;  // before the softplus; before the sigmoid of beta
  const float *log_rate, *step_bias, *skip;  // [heads]; or NULL
  bool skip_per_channel, writes_twice;
  float step_low, step_high, scale, epsilon;
  float *state;              // [B, heads, keys, values]
  struct ck_token_vector y;
  // RWKV-7.
  struct ck_token_vector decay, rate, mixed, first, value, score;
  const float *key_scale, *key_rate, *bonus;
  bool is_first;
};

enum ck_token_kind { CK_TOKEN_EMBED, CK_TOKEN_MULTIPLY, CK_TOKEN_STEP, CK_TOKEN_ATTEND };
struct ck_token_phase {
  enum ck_token_kind kind;
  const void *work;          // the struct of that kind
};

/// Cosines and sines that attentions of one kind share.
struct ck_token_rotation {
  long pairs;
  const double *rates;       // radians a token, [pairs]
  float *cosines, *sines;    // [pairs], made at every step
};

struct ck_token_step_args {
  const struct ck_token_phase *phases;
  const struct ck_token_rotation *rotations;
  long phase_count, rotation_count;
  long batch, position;      // tokens that the states have seen
  const int32_t *tokens;     // [B]
  long operand_floats;       // most floats of a phase's operands, of one sequence
  long size;                 // of the largest operand or row of the embedding
  long threads;              // at most
  void (*unary)(const struct ck_unary_args *);  // of the same level
};

/// The result does not depend on the number of threads.
struct ck_token_table {
  void (*step)(const struct ck_token_step_args *args);
};

/// Tokens of a part of attention.
enum { CK_TOKEN_PIECE = 64 };

bool ck_token_table_for(enum ck_level level, struct ck_token_table *out);

#ifdef __cplusplus
}
#endif
