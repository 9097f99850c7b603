// Recurrent cells given as code: a list of point-wise instructions and products for one step, run
// over time. The step's forward, Jacobian and adjoint are codes of the same kind.
//
// A frame is some rows and all units (or, where units do not mix, a strip of units). A value is in a
// tile, [rows][units] of its space, or in a slot, a strip of at most a few hundred elements.
#pragma once
#include "ck_common.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ck_rc_op {
  CK_RC_CONSTANT = 0,  // c
  CK_RC_ADD, CK_RC_SUBTRACT, CK_RC_MULTIPLY, CK_RC_DIVIDE,
  CK_RC_SCALE, CK_RC_OFFSET, CK_RC_FROM, CK_RC_OVER,  // c a, a + c, c - a, c / a
  CK_RC_TANH, CK_RC_SIGMOID, CK_RC_RELU, CK_RC_EXP, CK_RC_SOFTPLUS, CK_RC_MAXIMUM,
  CK_RC_STEP, CK_RC_GREATER,                          // 1 where a > 0, a > b
  CK_RC_PRODUCT, CK_RC_TRANSPOSED,                    // matrix `index` times a, its transpose
  CK_RC_LOAD, CK_RC_STORE,                            // array `index`
  CK_RC_COPY, CK_RC_ACCUMULATE,                       // target = a, target += a
};

struct ck_rc_instruction {
  int32_t op;
  int32_t target, a, b;  // a slot, or ~ of a tile
  int32_t index;
  float constant;
};

/// Instructions on one space; a product is a group of its own.
struct ck_rc_group { int32_t space, first, count; };

struct ck_rc_code {
  const struct ck_rc_instruction *instructions;
  const struct ck_rc_group *groups;
  const int32_t *tile_spaces;
  long group_count, slot_count, tile_count;
};

/// Element (row b, token t, unit u) is data[b row + t step + u]. NULL: not wanted.
struct ck_rc_array { float *data; long row, step; };

struct ck_rc_matrix {
  const float *weights;  // [heads or 1][rows][columns]
  long heads, rows, columns;
  bool is_shared;        // one block for all heads
};

struct ck_rc_parameter {
  int32_t space;
  const float *values;   // [W]
  float *gradient;       // backward: [B, W]
};

struct ck_rc_state {
  int32_t space;
  float initial;         // before the first token, after a reset
  float low, high;       // invariant box, for Newton's method
  // Forward: the state before and after. Backward: d of the final state (NULL: zeros) and d of the
  // state before (NULL: not wanted).
  const float *first;
  float *last;
  // Backward: the state before the first token (NULL: `initial`) and after every token [B, T, W].
  const float *start;
  const float *history;
};

struct ck_rc_args {
  // Tiles with S states and P parameters. Forward and Jacobian: states, next states, parameters,
  // then d next / d state [S][S]. Adjoint: states, d next states, d states, parameters, d parameters.
  struct ck_rc_code code;      // forward or adjoint
  struct ck_rc_code jacobian;  // Newton's method and its adjoint
  long batch, tokens;
  const int64_t *widths;       // of the spaces
  const struct ck_rc_array *arrays;
  const struct ck_rc_matrix *matrices;
  const struct ck_rc_parameter *parameters;
  const struct ck_rc_state *states;
  long matrix_count, parameter_count, state_count;
  const int32_t *reset;        // [B, T], nonzero: `initial` before this token; or NULL
  bool mixes;                  // has products
  // Newton's method: where histories and d output are among the arrays, which state is the output.
  long history_array, output_array, output_state;
  float *report;               // [4]: most iterations, mean, largest residual, part run by token
};

struct ck_recurrent_cell_table {
  void (*forward)(const struct ck_rc_args *);
  void (*backward)(const struct ck_rc_args *);
  // The same results for codes without products and at most CK_RC_NEWTON_STATES states: Newton's
  // method over blocks of tokens, and one transposed reverse scan.
  void (*forward_newton)(const struct ck_rc_args *);
  void (*backward_scan)(const struct ck_rc_args *);
  // `forward` for codes with products: sweeps over segments of tokens with the products of the sweep
  // before, until these are within a tolerance; a segment that does not get there is run token by
  // token. Fills `report`.
  void (*forward_frozen)(const struct ck_rc_args *);
};

enum { CK_RC_NEWTON_STATES = 3 };

/// Fills the best kernels that `level` contains; false where this build or processor lacks them.
bool ck_recurrent_cell_table_for(enum ck_level level, struct ck_recurrent_cell_table *out);

#ifdef __cplusplus
}
#endif
