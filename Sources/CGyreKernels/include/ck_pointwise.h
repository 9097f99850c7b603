// Element-wise operations, broadcasting pairs, reductions over rows and columns, copies, casts,
// softmax and gated linear units. All arrays float32, contiguous unless strides are given.
// Outputs may be the same array as an input of the same layout, except where said otherwise.
#pragma once
#include "ck_common.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ck_unary {
  CK_UNARY_RELU, CK_UNARY_RELU2 /* relu(x)² */, CK_UNARY_SILU, CK_UNARY_GELU_TANH, CK_UNARY_GELU_ERF,
  CK_UNARY_SIGMOID, CK_UNARY_TANH, CK_UNARY_EXP, CK_UNARY_LOG, CK_UNARY_LOG1P, CK_UNARY_SOFTPLUS,
  CK_UNARY_LOGSIGMOID, CK_UNARY_SQUARE, CK_UNARY_SQRT, CK_UNARY_RSQRT, CK_UNARY_NEG, CK_UNARY_ABS,
  CK_UNARY_EXPM1, CK_UNARY_RECIPROCAL, CK_UNARY_SIN, CK_UNARY_COS
};

/// forward: y = f(x). backward: y = dy · f′(x).
struct ck_unary_args {
  enum ck_unary op;
  long count;
  const float *x;    // [count]
  const float *dy;   // [count]; backward only
  float *y;          // [count]
};

enum ck_binary { CK_BINARY_ADD, CK_BINARY_SUB, CK_BINARY_MUL, CK_BINARY_DIV, CK_BINARY_MAX, CK_BINARY_MIN };

/// y[r, c] = op(a[r·a_row + c·a_column], b[r·b_row + c·b_column]). A broadcast operand has row
/// stride 0 ([columns]), column stride 0 ([rows]) or both (scalar); column strides are 0 or 1. With a
/// group above 1 that many rows share one row of an operand: r / group stands for r.
struct ck_binary_args {
  enum ck_binary op;
  long rows, columns;
  const float *a; long a_row, a_column;   // strides in elements
  const float *b; long b_row, b_column;
  float *y; long y_row;                   // column stride 1
  long a_group, b_group;                  // 0: none
};

/// da = dy · ∂op/∂a and db = dy · ∂op/∂b, both [rows, columns] contiguous and not yet reduced over
/// broadcast axes (see sum_rows, sum_columns). Ties of max and min give half to each.
struct ck_binary_backward_args {
  enum ck_binary op;
  long rows, columns;
  const float *a; long a_row, a_column;
  const float *b; long b_row, b_column;
  const float *dy; long dy_row;           // column stride 1
  float *da, *db;                         // either may be NULL
};

/// sum_rows: out[c] = Σ_r x[r, c] · y[r, c], [columns]. sum_columns: out[r] = Σ_c x[r, c] · y[r, c],
/// [rows]. max_columns: out[r] = max_c x[r, c], index[r] = the first c where it is reached.
/// Sums have a fixed partition: the same bits for any number of threads.
struct ck_reduce_args {
  long rows, columns;
  const float *x; long x_row;
  const float *y; long y_row;   // second factor, NULL = ones; sums only
  bool bf16;                    // x is bfloat16; sum_rows without y only
  float *out;                   // may be NULL for max_columns
  int32_t *index;               // max_columns only; may be NULL
};

/// *out = Σ x², accumulated in double over a fixed partition.
struct ck_sum_of_squares_args {
  long count;
  const float *x;
  double *out;
};

/// y = alpha · x + beta · y; x NULL = ones (fill: beta 0, scale: x NULL and alpha 0). beta 0 does not
/// read y.
struct ck_axpby_args {
  long count;
  float alpha, beta;
  const float *x;
  float *y;
};

/// Copies an array of any layout: destination[Σ iₖ destination_strideₖ] = source[Σ iₖ source_strideₖ].
/// Serves split, concatenate, permute, transpose and broadcast. Arrays do not overlap.
struct ck_copy_args {
  int rank;                       // 0...8
  int element_size;               // bytes: 1, 2, 4 or 8
  long shape[8];
  long source_stride[8];          // elements
  long destination_stride[8];     // elements
  const void *source;
  void *destination;
};

enum ck_dtype { CK_F32, CK_BF16, CK_F16, CK_I8, CK_I32 };

/// Conversion between float32 and another type (one of the two is CK_F32). To bf16 and f16: nearest,
/// ties to even, overflow to infinity. To integers: toward zero, saturating, NaN to 0.
struct ck_cast_args {
  enum ck_dtype from, to;
  long count;
  const void *x;
  void *y;   // not x
};

/// forward: y = softmax(x) along rows. backward: dx = y ∘ (dy − Σ_c dy y).
/// A row of −∞ gives zeros.
struct ck_softmax_args {
  long rows, columns;
  const float *x;    // forward only
  const float *dy;   // backward only
  float *y;          // [rows, columns]; written by forward, read by backward
  float *dx;         // backward only
};

enum ck_glu { CK_GLU_SWIGLU, CK_GLU_GEGLU_TANH, CK_GLU_GEGLU_ERF, CK_GLU_REGLU, CK_GLU_SIGMOID };

/// y = act(gate) ∘ up; gate and up may be halves of one [rows, 2·columns] array, through the strides.
/// backward: dgate = dy ∘ up ∘ act′(gate), dup = dy ∘ act(gate).
struct ck_glu_args {
  enum ck_glu kind;
  bool bf16;                        // all arrays are bfloat16, gates within 1e-4; rows count their elements
  long rows, columns;
  const float *gate; long gate_row;
  const float *up; long up_row;
  float *y; long y_row;             // forward only
  const float *dy; long dy_row;     // backward only
  float *dgate; long dgate_row;
  float *dup; long dup_row;
};

/// y = v ∘ s and z = v ∘ d, s one factor a row, d one a head or one a channel. backward, from dy and dz:
/// dv = dy ∘ s + dz ∘ d, ds = Σ dy ∘ v over a row, dd = Σ dz ∘ v over tokens (and a head's channels).
struct ck_value_scales_args {
  long tokens, heads, size;
  bool per_channel;      // d is [heads, size], not [heads]
  const float *v;        // [tokens, heads, size]
  const float *s;        // [tokens, heads]
  const float *d;
  float *y, *z;          // forward only
  const float *dy, *dz;  // backward only
  float *dv, *ds, *dd;   // backward only
};

/// out[i] = chosen where the upper 23 bits of word i of Philox 4x32-10 with the key `seed` and the
/// counters (i / 4, stream) are below `below`, other elsewhere.
struct ck_choice_args {
  long count;
  uint64_t seed, stream;
  uint32_t below;
  float chosen, other;
  float *out;
};

struct ck_pointwise_table {
  void (*unary)(const struct ck_unary_args *);
  void (*unary_backward)(const struct ck_unary_args *);
  void (*binary)(const struct ck_binary_args *);
  void (*binary_backward)(const struct ck_binary_backward_args *);
  void (*sum_rows)(const struct ck_reduce_args *);
  void (*sum_columns)(const struct ck_reduce_args *);
  void (*max_columns)(const struct ck_reduce_args *);
  void (*sum_of_squares)(const struct ck_sum_of_squares_args *);
  void (*axpby)(const struct ck_axpby_args *);
  void (*copy)(const struct ck_copy_args *);
  void (*cast)(const struct ck_cast_args *);
  void (*softmax)(const struct ck_softmax_args *);
  void (*softmax_backward)(const struct ck_softmax_args *);
  void (*glu)(const struct ck_glu_args *);
  void (*glu_backward)(const struct ck_glu_args *);
  void (*choice)(const struct ck_choice_args *);
  void (*value_scales)(const struct ck_value_scales_args *);
  void (*value_scales_backward)(const struct ck_value_scales_args *);
};

/// Fills the best kernels that `level` contains; false where this architecture lacks the level.
bool ck_pointwise_table_for(enum ck_level level, struct ck_pointwise_table *out);

#ifdef __cplusplus
}
#endif
