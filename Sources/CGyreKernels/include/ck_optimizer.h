// Parameter updates in one pass over parameter, gradient and moments, all float32.
#pragma once
#include "ck_common.h"

#ifdef __cplusplus
extern "C" {
#endif

/// g ← gradient_scale · g; m ← β₁m + (1−β₁)g; v ← β₂v + (1−β₂)g²;
/// w ← w − learning_rate · (weight_decay · w + (m / bias1) / (√(v / bias2) + eps)).
/// Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2.
struct ck_adamw_args {
  long count;
  float learning_rate, beta1, beta2, eps, weight_decay;
  float bias1, bias2;         // 1 − β₁ᵗ and 1 − β₂ᵗ at step t
  float gradient_scale;       // the clipping factor
  const float *gradient;      // [count]
  float *parameter, *m, *v;   // [count], updated
};

/// g ← gradient_scale · g + weight_decay · w; m ← momentum · m + g;
/// w ← w − learning_rate · (nesterov ? g + momentum · m : m).
struct ck_sgd_args {
  long count;
  float learning_rate, momentum, weight_decay, gradient_scale;
  bool nesterov;
  const float *gradient;   // [count]
  float *parameter;        // [count], updated
  float *m;                // [count], updated; NULL = no momentum
};

struct ck_optimizer_table {
  void (*adamw)(const struct ck_adamw_args *);
  void (*sgd)(const struct ck_sgd_args *);
};

/// Fills the best kernels that `level` contains; false where this architecture lacks the level.
bool ck_optimizer_table_for(enum ck_level level, struct ck_optimizer_table *out);

#ifdef __cplusplus
}
#endif
