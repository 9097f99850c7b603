// Rotary position embedding, and token shift with its learned mixes (RWKV).
#pragma once
#include "ck_common.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ck_rotary_layout {
  CK_ROTARY_HALVES,        // pairs (i, i + R/2), GPT-NeoX
  CK_ROTARY_INTERLEAVED    // pairs (2i, 2i + 1), GPT-J
};

/// Rotates pairs of the first R = rotated elements of each head by the angle of the token's position:
/// (a, b) ← (a cos − b sin, a sin + b cos); the others are copied. backward rotates the other way.
struct ck_rotary_args {
  long batch, tokens, heads, key_size;   // B, T, H, K
  long rotated;               // R ≤ K, even
  enum ck_rotary_layout layout;
  const int32_t *offset;      // [B]: position of each row's first token; NULL = 0
  const int32_t *position;    // [B, T]: positions themselves, in place of offset + t; or NULL
  const float *cosine, *sine; // [Tmax, R/2]
  long table_rows;            // Tmax; positions are clamped to it
  bool bf16;                  // x and y are bfloat16, the pointers' type notwithstanding
  const float *x; long x_token;   // [B, T, H, K], elements between tokens (H·K where contiguous)
  float *y; long y_token;         // may be x
};

/// prev[t] = x[t−1], 0 after a reset, `last` before the first token;
/// y[j] = x + (prev − x) ∘ mix[j], for each of `mixes` rows.
/// backward: dprev = Σ_j dy[j] ∘ mix[j]; dx = Σ_j dy[j] − dprev + dprev of the next token.
struct ck_token_shift_args {
  long batch, tokens, width, mixes;
  const int32_t *reset;        // [B, T] or NULL
  const float *x;              // [B, T, D]
  const float *last;           // [B, D] or NULL = zeros
  const float *mix;            // [mixes, D]
  long mix_batch;              // from one sequence's mixes to the next; 0: all share; forward only
  float *y;                    // [mixes, B, T, D]; forward
  float *last_final;           // [B, D] or NULL; may be last; forward
  const float *dy;             // [mixes, B, T, D]; backward from here on
  const float *dlast_final;    // [B, D] or NULL
  float *dx;                   // [B, T, D]
  float *dmix;                 // [mixes, D] or NULL
  float *dlast;                // [B, D] or NULL
};

struct ck_rotary_table {
  void (*rotate)(const struct ck_rotary_args *);
  void (*rotate_backward)(const struct ck_rotary_args *);   // x is dy, y is dx
  void (*token_shift)(const struct ck_token_shift_args *);
  void (*token_shift_backward)(const struct ck_token_shift_args *);
};

/// Fills the best kernels that `level` contains; false where this architecture lacks the level.
bool ck_rotary_table_for(enum ck_level level, struct ck_rotary_table *out);

#ifdef __cplusplus
}
#endif
