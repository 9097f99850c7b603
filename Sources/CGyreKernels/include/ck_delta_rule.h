// Delta rule with a matrix state S [K, V] per head, in two parameterisations.
//
//   beta  S ← diag(e^g) S;   S ← S + k (β (v − Sᵀk))ᵀ;                y = s Sᵀq
//   DPLR  S ← diag(e^g) S + b (aᵀ S_previous) + k vᵀ;                  y = s Sᵀq
//
// DPLR is "diagonal plus low rank"; its aᵀS reads the state before the decay. DeltaNet, Gated
// DeltaNet and KDA are the beta form without gate, with a scalar and with a vector gate; RWKV-7 is
// DPLR. Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length",
// 2024, https://arxiv.org/abs/2406.06484; "Gated Delta Networks", 2024,
// https://arxiv.org/abs/2412.06464.
//
// Stability. With ‖k‖² β ≤ 2 (unit keys, β in (0, 2]; in DPLR |1 + aᵀb| ≤ 1) no token enlarges the
// state. Beyond that the recurrence itself is expansive; it is still followed exactly, and overflows
// where it would token by token. Chunks are solved by substitution, never through an explicit
// inverse. A chunk whose product of |1 − β‖k‖²| (DPLR: |1 + aᵀb|), where above 1, exceeds 256 is
// computed token by token, in both directions: right, but several times slower.
#pragma once
#include "ck_common.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ck_delta_rule_kind { CK_DELTA_RULE_BETA = 0, CK_DELTA_RULE_DPLR = 1 };

/// How time is walked; all forms compute the same function.
enum ck_delta_rule_form {
  CK_DELTA_RULE_RECURRENT = 0,  // token by token
  CK_DELTA_RULE_CHUNKWISE = 1,  // dense products within chunks, state from chunk to chunk
  CK_DELTA_RULE_PARALLEL = 2    // one chunk that covers all tokens: quadratic time
};

/// What all passes read. Letters: B batch, T tokens, H heads, Hk key heads, K key size, V value size.
struct ck_delta_rule_inputs {
  enum ck_delta_rule_kind kind;
  long batch, tokens;         // B, T; either may be 0
  long heads;                 // H, of v, g, beta, a, b, y and the state
  long key_heads;             // Hk, of q and k; divides H; head h reads key head h / (H / Hk)
  long key_size, value_size;  // K, V >= 1
  long gate_size;             // 0: no gate; 1: one gate a head; K: one gate a key channel
  float scale;                // s, multiplies the outputs
  const float *q;             // [B, T, Hk, K]
  const float *k;             // [B, T, Hk, K]
  const float *v;             // [B, T, H, V]
  const float *g;             // log decay <= 0, −∞ allowed; [B, T, H] or [B, T, H, K]; NULL for gate_size 0
  const float *beta;          // [B, T, H], write strength, beta kind only
  const float *a, *b;         // [B, T, H, K], erase and write vectors, DPLR only
  const float *initial_state; // [B, H, K, V]; NULL: zeros
  const int32_t *reset;       // [B, T]; nonzero: the state is zero before the token; NULL: never
};

struct ck_delta_rule_forward_args {
  struct ck_delta_rule_inputs inputs;
  enum ck_delta_rule_form form;
  long chunk_size;      // tokens a chunk in the chunkwise form; <= 0: 64. Multiples of 16 waste nothing
  float *y;             // [B, T, H, V]
  float *final_state;   // [B, H, K, V] or NULL
  // Kept for the backward pass, both or neither (NULL: backward computes them again):
  float *saved_states;  // [B, H, ck_delta_rule_state_count(form, chunk_size, T), K, V]
  float *saved_writes;  // [B, T, H, V], what each token wrote: β(v − Sᵀk), or Sᵀa in DPLR
};

/// Gradients of a scalar with respect to the inputs. Every output may be NULL.
struct ck_delta_rule_backward_args {
  struct ck_delta_rule_inputs inputs;
  enum ck_delta_rule_form form;  // as in the forward pass when its saved_* are given
  long chunk_size;               // likewise
  const float *saved_states, *saved_writes;  // from the forward pass, or NULL
  const float *dy;               // [B, T, H, V]
  const float *d_final_state;    // [B, H, K, V]; NULL: zeros
  float *dq, *dk;                // [B, T, Hk, K], summed over the heads of the group
  float *dv;                     // [B, T, H, V]
  float *dg;                     // shape of g
  float *dbeta;                  // [B, T, H], beta kind only
  float *da, *db;                // [B, T, H, K], DPLR only
  float *d_initial_state;        // [B, H, K, V]
};

/// One token, the state updated in place.
struct ck_delta_rule_step_args {
  struct ck_delta_rule_inputs inputs;  // tokens = 1; initial_state is not read
  float *state;                        // [B, H, K, V]
  float *y;                            // [B, 1, H, V]
};

/// States that a forward pass saves for one head: one at the entry of each chunk (of each 32 tokens
/// in the recurrent form).
long ck_delta_rule_state_count(enum ck_delta_rule_form form, long chunk_size, long tokens);

struct ck_delta_rule_table {
  void (*forward)(const struct ck_delta_rule_forward_args *);
  void (*backward)(const struct ck_delta_rule_backward_args *);
  void (*step)(const struct ck_delta_rule_step_args *);
};

/// Fills the best kernels whose instructions `level` includes; false where this build has none.
bool ck_delta_rule_table_for(enum ck_level level, struct ck_delta_rule_table *out);

#ifdef __cplusplus
}
#endif
