// Normalisation of rows: RMSNorm, LayerNorm, L2; with weight, bias, gate and a fused residual sum.
#pragma once
#include "ck_common.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ck_norm {
  CK_NORM_RMS,     // n = s / √(mean s² + eps)
  CK_NORM_LAYER,   // n = (s − mean s) / √(var s + eps)
  CK_NORM_L2       // n = s / √(Σ s² + eps)
};

enum ck_norm_gate {
  CK_NORM_GATE_NONE,
  CK_NORM_GATE_AFTER,    // y = norm(s) ∘ act(z)
  CK_NORM_GATE_BEFORE    // y = norm(s ∘ act(z)), Mamba-2
};

enum ck_norm_activation { CK_NORM_SILU, CK_NORM_SIGMOID };

/// y = n(s) ∘ (weight_offset + weight) + bias with s = x + residual, row by row. Heads are rows:
/// [tokens, H, V] is rows = tokens · H, columns = V, with weight_rows 1 (shared) or H.
/// backward recomputes the statistics: nothing but the inputs is kept.
struct ck_norm_args {
  enum ck_norm kind;
  enum ck_norm_gate gate;
  enum ck_norm_activation activation;
  long rows, columns;
  float eps;
  float weight_offset;     // 0, or 1 for weights stored around zero
  long weight_rows;        // row r uses weight and bias row r % weight_rows; at least 1
  const float *x;          // [rows, columns]; backward: s, i.e. the sum where there was a residual; bfloat16 where
                           // `bf16_x`, then dx is too
  const void *residual;    // [rows, columns] or NULL; forward only; float32, bfloat16 where `bf16_residual`
  float *sum;              // x + residual, [rows, columns] or NULL; forward only; may be x or residual
  const float *weight;     // [weight_rows, columns] or NULL = ones
  const float *bias;       // [weight_rows, columns] or NULL = zeros
  const float *z;          // gate pre-activation, [rows, columns]; NULL without gate; bfloat16 where `bf16_z`, and dz
  void *y;                 // [rows, columns]; forward only; may be x of its type; bfloat16 where `bf16_y`
  const void *dy;          // [rows, columns]; backward from here on; bfloat16 where `bf16_y`
  const void *dy_more;     // a second term of dy, [rows, columns] or NULL; likewise
  const float *dsum;       // cotangent of `sum`, added to dx; [rows, columns] or NULL
  float *dx;               // [rows, columns]: gradient of s, hence of x and residual alike; may be dy of its type
  float *dz;               // [rows, columns] or NULL
  float *dweight, *dbias;  // [weight_rows, columns] or NULL
  bool bf16_x, bf16_z, bf16_residual;
  bool bf16_y;             // y in bfloat16 may have gates within 1e-4; so may gradients where both x and z are
};

struct ck_norm_table {
  void (*forward)(const struct ck_norm_args *);
  void (*backward)(const struct ck_norm_args *);
};

/// Fills the best kernels that `level` contains; false where this architecture lacks the level.
bool ck_norm_table_for(enum ck_level level, struct ck_norm_table *out);

#ifdef __cplusplus
}
#endif
