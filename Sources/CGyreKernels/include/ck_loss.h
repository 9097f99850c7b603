// Cross-entropy over rows of logits, in place, and the embedding table's gather and scatter.
#pragma once
#include "ck_common.h"

#ifdef __cplusplus
extern "C" {
#endif

/// loss = lse − logit[target] + z_loss · lse² with lse = log Σ exp(logits). With `gradient` set, the
/// logits are overwritten by scale · ∂loss/∂logits = scale · (softmax · (1 + 2 z_loss lse) − onehot).
/// Rows with target < 0 have loss 0 and gradient 0. The caller makes logits a chunk of rows at a
/// time, so that [tokens, vocabulary] never exists as a whole.
struct ck_cross_entropy_args {
  long rows, columns;
  float *logits; long logits_row;   // row stride in elements
  const int32_t *targets;           // [rows]; < columns
  const float *scale;               // [rows] or NULL = ones: cotangent of each row's loss
  float z_loss;                     // coefficient of lse²; 0 = none
  bool gradient;                    // overwrite the logits by their gradient
  float *loss;                      // [rows] or NULL
  float *lse;                       // [rows] or NULL
};

/// gather: out[i] = table[tokens[i]]. scatter: dtable[tokens[i]] += dout[i], in the order of i for
/// each token, whatever the number of threads. add: the same, a token's sum first, and no other row is
/// touched. Tokens outside [0, vocabulary) give zeros and receive nothing.
struct ck_embedding_args {
  long count, vocabulary, width;
  const int32_t *tokens;   // [count]
  const float *table;      // [vocabulary, width]; gather
  float *out;              // [count, width]; gather
  const float *dout;       // [count, width]; scatter and add
  bool bf16;               // dout is bfloat16, or table and out of gather are
  float *dtable;           // [vocabulary, width], added to; scatter and add
};

struct ck_loss_table {
  void (*cross_entropy)(const struct ck_cross_entropy_args *);
  void (*embedding_gather)(const struct ck_embedding_args *);
  void (*embedding_scatter)(const struct ck_embedding_args *);
  void (*embedding_add)(const struct ck_embedding_args *);
};

/// Fills the best kernels that `level` contains; false where this architecture lacks the level.
bool ck_loss_table_for(enum ck_level level, struct ck_loss_table *out);

#ifdef __cplusplus
}
#endif
