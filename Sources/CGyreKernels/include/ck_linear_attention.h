// LinearAttention: the engine of matrix states with scalar or vector decay.
//
// Per batch row and head, with S a [K, V] state and D_t the decay of token t:
//
//     S_t = D_t S_{t-1} + k_t v_tᵀ        y_t = s · S_tᵀ q_t
//
// D_t is 1, e^{g_h} (one number per head), e^{g_t} (per token and head) or diag(e^{g_t}) (per token,
// head and key channel); g is the natural logarithm of the decay, ≤ 0, −∞ allowed.
//   bonus u:     y_t = s · (S_{t-1} + diag(u) k_t v_tᵀ)ᵀ q_t           (RWKV-6)
//   normaliser:  z_t = D_t z_{t-1} + k_t, a_t = s · z_t·q_t (with a bonus: z_{t-1} + u∘k_t), and y_t is
//                divided by d_t:  sum: a_t + ε;  floor: max(|a_t|, floor) + ε
//   exponential gating (mLSTM): with input gate i_t and running maximum m_t = max(g_t + m_{t-1}, i_t),
//                S_t = e^{g_t + m_{t-1} − m_t} S_{t-1} + e^{i_t − m_t} k_t v_tᵀ, z_t likewise, and
//                d_t = max(|a_t|, e^{−m_t}) + ε. m is a constant in the gradient.
//
// A reset zeroes the state, so no number flows across it, and no token sees a later one, as long as
// the inputs are finite: the chunkwise form multiplies masked numbers of the same 16 tokens (products of
// bfloat16: of the same chunk) by 0.
//
// Grouped heads: head h reads the queries and keys of key head h / (heads / key_heads).
#pragma once
#include "ck_common.h"

#ifdef __cplusplus
extern "C" {
#endif

/// How the forward pass runs; all give the same numbers up to rounding.
enum ck_linear_attention_form {
  CK_LINEAR_ATTENTION_RECURRENT = 0,  // token by token
  CK_LINEAR_ATTENTION_CHUNKWISE = 1,  // products of chunks of `chunk` tokens, at most 64 at a time
  CK_LINEAR_ATTENTION_PARALLEL = 2    // one chunk over the whole time, in blocks of the default chunk
};

enum ck_linear_attention_decay {
  CK_LINEAR_ATTENTION_DECAY_NONE = 0,    // D = 1, log_decay unused
  CK_LINEAR_ATTENTION_DECAY_HEAD = 1,    // log_decay [H]
  CK_LINEAR_ATTENTION_DECAY_SCALAR = 2,  // log_decay [B, T, H]
  CK_LINEAR_ATTENTION_DECAY_VECTOR = 3   // log_decay [B, T, H, K]
};

enum ck_linear_attention_normaliser {
  CK_LINEAR_ATTENTION_NORMALISER_NONE = 0,
  CK_LINEAR_ATTENTION_NORMALISER_SUM = 1,         // d = a + epsilon
  CK_LINEAR_ATTENTION_NORMALISER_FLOOR = 2,       // d = max(|a|, floor) + epsilon
  CK_LINEAR_ATTENTION_NORMALISER_EXPONENTIAL = 3  // mLSTM; needs input_gate, no vector decay
};

/// What all passes share. Arrays are float32 (but see bf16_stored), contiguous, row-major.
struct ck_linear_attention_problem {
  long batch, time, heads, key_heads;  // B, T, H, Hk; Hk divides H
  long key_width, value_width;         // K, V
  enum ck_linear_attention_form form;  // of the forward pass; the backward pass is chunkwise always
  long chunk;                          // tokens a chunk; 0 = the fastest (32 or 64); above 64 counts as 64
  enum ck_linear_attention_decay decay;
  enum ck_linear_attention_normaliser normaliser;
  bool bf16;      // the backward pass and all forms but the recurrent one may round operands of products
                  // to bfloat16 (levels with such instructions do); states and sums are float32
  bool bf16_stored;  // q, k, v, y, dy, dq, dk and dv are bfloat16, the pointers' type notwithstanding, and all
                     // else is float32; only where `takes_scales` and `bf16`, not in `step`
  float scale;    // s
  float epsilon;  // ε of the normaliser
  float floor;    // floor of NORMALISER_FLOOR

  const float *q, *k;         // [B, T, Hk, K]
  const float *v;             // [B, T, H, V]
  const float *log_decay;     // g, shape by `decay`
  const float *input_gate;    // i [B, T, H], before the exponential; NORMALISER_EXPONENTIAL only
  const float *bonus;         // u [H, K], or NULL
  const int32_t *reset;       // [B, T], or NULL: nonzero = the state (m too) is 0 before this token
  // Mamba's: s_t v_t in v's place and d∘v_t added to y_t; both or neither, and only where `takes_scales`
  const float *value_scale;   // s [B, T, H]
  const float *skip;          // d [H], or [H, V] with skip_per_channel
  bool skip_per_channel;

  // The state before the first token; NULL = zeros. Ignored by `step`, which has its own.
  const float *state;         // S [B, H, K, V]
  const float *norm_state;    // z [B, H, K], with a normaliser
  const float *max_state;     // m [B, H], NORMALISER_EXPONENTIAL only
};

/// Moves q, k, v, g once and y once; about 4KV + (chunk + 16)(K + V) flops a token and head.
struct ck_linear_attention_forward_args {
  struct ck_linear_attention_problem problem;
  float *y;                 // [B, T, H, V]
  float *final_state;       // S_T [B, H, K, V], or NULL
  float *final_norm_state;  // z_T [B, H, K], or NULL
  float *final_max_state;   // m_T [B, H], or NULL
  float *saved;             // ck_linear_attention_saved_floats(), or NULL: the states at the chunk
                            // starts, for the backward pass (filled by the chunkwise and parallel forms)
};

/// Gradients of Σ y·dy + Σ S_T·d_final_state + Σ z_T·d_final_norm_state. Outputs may be NULL.
struct ck_linear_attention_backward_args {
  struct ck_linear_attention_problem problem;
  const float *y;                   // [B, T, H, V], as the forward pass gave it; with a normaliser
  const float *dy;                  // [B, T, H, V]
  const float *saved;               // from a forward pass of the same problem, level and form (not
                                    // recurrent), or NULL: the states are computed again
  const float *d_final_state;       // [B, H, K, V], or NULL = 0
  const float *d_final_norm_state;  // [B, H, K], or NULL = 0
  bool constant_denominator;        // take d_t as a constant, as the published mLSTM kernels do
  float *dq, *dk;                   // [B, T, Hk, K], summed over the heads of a group
  float *dv;                        // [B, T, H, V]
  float *dlog_decay;                // shape of log_decay; 0 where the decay is 0 and at resets
  float *dinput_gate;               // [B, T, H]
  float *dbonus;                    // [H, K]
  float *dstate;                    // [B, H, K, V]
  float *dnorm_state;               // [B, H, K]
  float *dvalue_scale, *dskip;      // shapes of value_scale and skip; with them and dv
};

/// Decoding: problem.time tokens (1, usually), the state updated in place. Reads and writes the
/// state once a token.
struct ck_linear_attention_step_args {
  struct ck_linear_attention_problem problem;
  float *y;           // [B, T, H, V]
  float *state;       // S [B, H, K, V], in and out
  float *norm_state;  // z [B, H, K], in and out; with a normaliser
  float *max_state;   // m [B, H], in and out; NORMALISER_EXPONENTIAL only
};

struct ck_linear_attention_table {
  void (*forward)(const struct ck_linear_attention_forward_args *);
  void (*backward)(const struct ck_linear_attention_backward_args *);
  void (*step)(const struct ck_linear_attention_step_args *);
  /// Whether forward and backward take value_scale and skip for this problem, present or not, and bf16_stored. The
  /// answer is that of now: it depends on the number of threads.
  bool (*takes_scales)(const struct ck_linear_attention_problem *);
};

/// Fills the best kernels whose instructions `level` includes; false where the build has none.
bool ck_linear_attention_table_for(enum ck_level level, struct ck_linear_attention_table *out);

/// Floats of `saved`: B · H · ⌈T / chunk⌉ · K · V, V rounded up to 16, the default chunk in the
/// parallel form. 0 for the recurrent form.
size_t ck_linear_attention_saved_floats(const struct ck_linear_attention_problem *problem);

#ifdef __cplusplus
}
#endif
