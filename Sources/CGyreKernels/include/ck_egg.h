// EGG, the integer language model (arXiv 2511.16652): the perturbed forward pass of a population, and
// the vote that moves its weights. Everything is exact: results are equal on every level.
#pragma once
#include "ck_common.h"

#ifdef __cplusplus
extern "C" {
#endif

/// Weights lie one after the other, matrices as [outputs, inputs]:
///
///     emb 256 x D;  each layer: ln1 D, Wf, Uf D x D, bf D, Wh, Uh D x D, bh, ln2 D, up 4D x D,
///     down D x 4D;  ln_out D;  head 256 x D
///
/// and are numbered in this order: leaf 0, 1, ... The noise of a pair of members has for each leaf, in
/// the same order, n numbers B and m numbers A of an m x n matrix, 2 d numbers of a vector of d.
struct ck_egg_model {
  long width, layers;         // D, at most 16384
  const int8_t *weights;      // in [-127, 127]
};

enum ck_egg_noise_kind { CK_EGG_NOISE_NONE, CK_EGG_NOISE_STORED, CK_EGG_NOISE_GENERATED };

/// Number i of a leaf and a pair, generated: byte i mod 16 of Philox 4x32-10 with the seed as key and the
/// counter (i / 16, pair, leaf, epoch), looked up in `table`; A begins at i = 2^31.
struct ck_egg_noise {
  enum ck_egg_noise_kind kind;
  int shift;                  // 4 + sigma_shift
  const int8_t *stored;       // [pairs, count of numbers]
  uint64_t seed;
  uint32_t epoch, first_pair; // of the call's first two members
  const int8_t *magnitudes;   // [128]: the table's first half; bytes from 128 on give the negatives
};

/// Member i is of pair i / 2, with sign + where i is even. It reads row i / group of `text`.
struct ck_egg_forward_args {
  struct ck_egg_model model;
  struct ck_egg_noise noise;
  long members, tokens, group;
  const uint8_t *text;        // [rows, tokens + 1]: token t is scored by the state after token t - 1
  const int8_t *state;        // [members, layers, D]
  int8_t *state_out;          // the same; may be state
  int32_t *fitness;           // [members]: sum of log-likelihoods in 1/16 bit
  int8_t *logits;             // [members, 256] after the last token, or NULL
};

/// Z = sum of sign_j A_j B_j' (vectors: of sign_j u_j); an entry with |Z| < limit stays, others move one
/// step towards the sign of Z, down where it is 0. With `carried` nothing is forgotten: Z is added to what
/// earlier votes left, an entry moves by the whole limits in the sum, and the rest is carried on.
struct ck_egg_update_args {
  struct ck_egg_model model;
  struct ck_egg_noise noise;  // first_pair: of signs[0]
  long pairs;
  const int8_t *signs;        // [pairs]: -1, 0 or 1
  int32_t limit;              // 16 * threshold * floor(sqrt(pairs)); with `carried` above 0
  int32_t *carried;           // [parameters], each smaller than limit, or NULL
  int8_t *weights_out;        // may be the model's
};

struct ck_egg_table {
  void (*forward)(const struct ck_egg_forward_args *);
  void (*update)(const struct ck_egg_update_args *);
};

/// Fills the best kernels that `level` contains; false where this architecture lacks the level.
bool ck_egg_table_for(enum ck_level level, struct ck_egg_table *out);

#ifdef __cplusplus
}
#endif
