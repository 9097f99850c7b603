// Depthwise causal convolution over the last few tokens, with its window as state.
#pragma once
#include "ck_common.h"

#ifdef __cplusplus
extern "C" {
#endif

/// s[t, d] = bias[d] + Σ_j weight[d, j] · x[t − (W−1) + j, d], y = s or silu(s): the last tap meets
/// the present token. Tokens before the first come from `window` (oldest first); taps do not reach
/// over a reset. backward recomputes s where it needs it.
/// With `pieces`, y or dy is that many arrays [B, T, piece_width], consecutive parts of the channels.
enum { CK_SHORT_CONVOLUTION_PIECES = 4 };
struct ck_short_convolution_args {
  long batch, tokens, width, taps;   // B, T, D, W = 1...16
  bool silu;
  bool rounds;                // what y and the gradients meet next is rounded to bfloat16: silu within 1e-4
  bool bf16_x;                // x and dx are bfloat16
  bool bf16_y;                // y, its pieces and dy are bfloat16; pointers are declared float, elements are counted
  const int32_t *reset;       // [B, T] or NULL; nonzero = no token before this one is seen from here on
  const float *x;             // [B, T, D]
  const float *weight;        // [D, W]
  const float *bias;          // [D] or NULL
  const float *window;        // [B, W−1, D] or NULL = zeros
  int pieces;                 // 0: one array
  long piece_width[CK_SHORT_CONVOLUTION_PIECES];  // of sum D
  float *piece[CK_SHORT_CONVOLUTION_PIECES];      // of y (forward) or dy (backward, read only)
  float *y;                   // [B, T, D]; forward; not x
  float *window_final;        // [B, W−1, D] or NULL; may be window; forward. After a reset, the tokens
                              // before it are zeros in it
  const float *dy;            // [B, T, D]; backward from here on
  const float *dwindow_final; // [B, W−1, D] or NULL
  float *dx;                  // [B, T, D]; not dy
  float *dweight;             // [D, W] or NULL
  float *dbias;               // [D] or NULL
  float *dwindow;             // [B, W−1, D] or NULL
};

struct ck_short_convolution_table {
  void (*forward)(const struct ck_short_convolution_args *);
  void (*backward)(const struct ck_short_convolution_args *);
};

/// Fills the best kernels that `level` contains; false where this architecture lacks the level.
bool ck_short_convolution_table_for(enum ck_level level, struct ck_short_convolution_table *out);

#ifdef __cplusplus
}
#endif
