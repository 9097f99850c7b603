// MesaNet's memory: a least-squares solution at every token by conjugate gradients.
#pragma once
#include "ck_common.h"

#ifdef __cplusplus
extern "C" {
#endif

/// Hₜ = e^gₜ Hₜ₋₁ + βₜ kₜ kₜᵀ, Gₜ = e^gₜ Gₜ₋₁ + βₜ kₜ vₜᵀ, (Hₜ + diag λ) xₜ = qₜ, yₜ = Gₜᵀ xₜ, with x from
/// `steps` steps of conjugate gradients from zero and ε in both divisors of a step. The backward pass
/// solves the adjoint system the same way. von Oswald et al., "MesaNet", 2025,
/// https://arxiv.org/abs/2506.05233
struct ck_mesa_args {
  long batch, tokens, heads, key_width, value_width, steps;
  float epsilon;
  const int32_t *reset;           // [B, T] or NULL; nonzero = both memories are zeroed before the token
  const float *q, *k;             // [B, T, H, K]
  const float *v;                 // [B, T, H, V]
  const float *log_decay, *beta;  // [B, T, H]
  const float *ridge;             // [H, K]
  const float *H0, *G0;           // [B, H, K, K] and [B, H, K, V], or NULL = zeros
  float *y;                       // [B, T, H, V]; forward
  float *x;                       // [B, T, H, K]; written by forward, read by backward
  float *H, *G;                   // final memories; forward
  const float *dy;                // [B, T, H, V]; backward from here on
  const float *dH, *dG;           // of the final memories, or NULL
  float *dq, *dk, *dv, *dlog_decay, *dbeta, *dridge;
  float *dH0, *dG0;               // or NULL
};

struct ck_mesa_table {
  void (*forward)(const struct ck_mesa_args *);
  void (*backward)(const struct ck_mesa_args *);
};

/// Fills the best kernels that `level` contains; false where this architecture lacks the level.
bool ck_mesa_table_for(enum ck_level level, struct ck_mesa_table *out);

#ifdef __cplusplus
}
#endif
