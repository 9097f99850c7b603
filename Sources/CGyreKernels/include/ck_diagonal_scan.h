// Diagonal linear recurrences hₜ = aₜ ∘ hₜ₋₁ + uₜ, real and complex, and the fused forms that mixers
// use over the same core: minGRU and the selective scan of Mamba-1. One token is the forward pass
// with tokens = 1.
#pragma once
#include "ck_common.h"

#ifdef __cplusplus
extern "C" {
#endif

/// Orders of evaluation. They agree up to rounding.
enum ck_scan_form {
  CK_SCAN_RECURRENT,   // token after token
  CK_SCAN_CHUNKWISE,   // chunk summaries, a scan over them, then the chunks: parallel over time
  CK_SCAN_PARALLEL     // associative doubling over all tokens, O(T log T)
};

enum ck_decay {
  CK_DECAY_VALUE,        // a [B, T, D]
  CK_DECAY_LOG,          // log a ≤ 0, [B, T, D]; −∞ closes the gate
  CK_DECAY_CONSTANT,     // a [D], the same at all times
  CK_DECAY_CONSTANT_LOG  // log a [D]
};

/// Tokens a chunk where callers do not choose: kernels may then evaluate in another order.
enum { CK_SCAN_CHUNK = 64 };

/// hₜ = aₜ hₜ₋₁ + uₜ, with hₜ₋₁ = 0 where reset. Backward, with the total cotangent λ of h:
/// λₜ = dhₜ + aₜ₊₁ λₜ₊₁, du = λ, daₜ = λₜ hₜ₋₁ (times aₜ for log decays), dh0 = a₀ λ₀.
/// In complex arrays a value is λ = ∂/∂re + i ∂/∂im and a is conjugated.
struct ck_diagonal_scan_args {
  long batch, tokens, width;
  enum ck_scan_form form;
  enum ck_decay decay;      // complex: VALUE or CONSTANT
  long chunk;               // tokens a chunk, for CK_SCAN_CHUNKWISE; 0 = chosen here
  const int32_t *reset;     // [B, T]; nonzero = the state is zeroed before the token; or NULL
  const float *a, *a_im;    // decay as `decay` says; *_im arrays in the complex kernels only
  const float *u, *u_im;    // [B, T, D]; forward only
  const float *h0, *h0_im;  // [B, D] or NULL = zeros
  float *h, *h_im;          // [B, T, D]; written by forward, read by backward
  float *h_final, *h_final_im;                // [B, D] or NULL; may be h0
  const float *dh, *dh_im;                    // [B, T, D] or NULL; backward from here on
  const float *dh_final, *dh_final_im;        // [B, D] or NULL
  float *da, *da_im;                          // shape of a, or NULL
  float *du, *du_im;                          // [B, T, D]
  float *dh0, *dh0_im;                        // [B, D] or NULL
};

/// minGRU from pre-activations: hₜ = (1 − σ(zₜ)) hₜ₋₁ + σ(zₜ) g(cₜ), g(x) = x + ½ for x ≥ 0, else σ(x).
/// Feng et al., "Were RNNs All We Needed?", 2024, https://arxiv.org/abs/2410.01201
/// With `bf16`, arrays [B, T, D] are bfloat16 and gates may be off by 1e-4; states and sums are float32.
struct ck_min_gru_args {
  long batch, tokens, width;
  enum ck_scan_form form;
  long chunk;               // 0 or CK_SCAN_CHUNK: token after token where sequences give work enough
  bool bf16;                // z, c, h, dh, dz and dc are bfloat16
  const int32_t *reset;     // [B, T] or NULL
  const float *z, *c;       // [B, T, D]: update gate and candidate pre-activations
  const float *h0;          // [B, D] or NULL
  float *h;                 // [B, T, D]; written by forward, read by backward
  float *h_final;           // [B, D] or NULL; may be h0
  const float *dh;          // [B, T, D] or NULL; backward from here on
  const float *dh_final;    // [B, D] or NULL
  float *dz, *dc;           // [B, T, D]
  float *dh0;               // [B, D] or NULL
};

/// Tokens between two states that the selective scan keeps for its backward pass.
#define CK_SELECTIVE_CHECKPOINT 16

/// hₜ = exp(Δₜ A) hₜ₋₁ + Δₜ xₜ Bₜ, yₜ = hₜ Cₜ + D ∘ xₜ, with hₜ [D, N], A ≤ 0 and Δ ≥ 0.
/// Gu and Dao, "Mamba", 2023, eq. 2, https://arxiv.org/abs/2312.00752
struct ck_selective_scan_args {
  long batch, tokens, width, states;   // B, T, D, N
  enum ck_scan_form form;
  long chunk;               // rounded up to a multiple of CK_SELECTIVE_CHECKPOINT
  const int32_t *reset;     // [B, T] or NULL
  const float *x, *dt;      // [B, T, D]
  const float *A;           // [D, N]
  const float *B, *C;       // [B, T, N]
  const float *skip;        // D of the equation, [D] or NULL
  const float *h0;          // [B, D, N] or NULL
  float *y;                 // [B, T, D]; forward
  float *h_final;           // [B, D, N] or NULL; may be h0; forward
  float *checkpoints;       // [B, ⌈T/16⌉, N, D]: the states before every 16th token; written by
                            // forward unless NULL, read by backward
  const float *dy;          // [B, T, D]; backward from here on
  const float *dh_final;    // [B, D, N] or NULL
  float *dx, *ddt;          // [B, T, D]
  float *dA;                // [D, N]
  float *dB, *dC;           // [B, T, N]
  float *dskip;             // [D] or NULL
  float *dh0;               // [B, D, N] or NULL
};

/// RWKV-4's average of values with weights that grow with their keys and decay with their age:
/// yₜ = (Nₜ₋₁ + e^(u+kₜ) vₜ) / (Dₜ₋₁ + e^(u+kₜ)), Nₜ = e^w Nₜ₋₁ + e^kₜ vₜ, Dₜ = e^w Dₜ₋₁ + e^kₜ.
/// The state is (num, den, max) with N = e^max num and D = e^max den, so that no exponential overflows;
/// max is a constant in the gradient. Peng et al., "RWKV", 2023, https://arxiv.org/abs/2305.13048
struct ck_wkv4_args {
  long batch, tokens, width;
  const int32_t *reset;                // [B, T] or NULL
  const float *w, *u;                  // [D]: log decay ≤ 0, bonus of the token itself
  const float *k, *v;                  // [B, T, D]
  const float *num0, *den0, *max0;     // [B, D], all or none (zeros and −10³⁸)
  float *y;                            // [B, T, D]; forward
  float *num, *den, *max;              // [B, D]; forward
  const float *dy;                     // [B, T, D] or NULL; backward from here on
  const float *dnum, *dden;            // [B, D] or NULL
  float *dw, *du;                      // [D]
  float *dk, *dv;                      // [B, T, D]
  float *dnum0, *dden0;                // [B, D], both or neither; only with num0
};

/// Weights under a running softmax: zₜ = log(e^zₜ₋₁ + e^xₜ), wₜ = e^(xₜ − zₜ), gₜ = zₜ₋₁ − zₜ; w = 1 and
/// g = 0 where nothing lies before. Backward, with λ the cotangent of z: dxₜ = wₜ (e^gₜ dwₜ − dgₜ + λₜ),
/// λₜ₋₁ = λₜ − dxₜ. Peng et al., "ABC", 2022, https://arxiv.org/abs/2110.02488
struct ck_additive_gate_args {
  long batch, tokens, width;
  const int32_t *reset;     // [B, T] or NULL; forward
  const float *x;           // [B, T, D]; forward
  const float *z0;          // [B, D] or NULL = −∞; forward
  float *w, *g;             // [B, T, D]; written by forward, read by backward
  float *z_final;           // [B, D]; forward
  const float *dw, *dg;     // [B, T, D]; backward from here on
  const float *dz_final;    // [B, D] or NULL
  float *dx;                // [B, T, D]
  float *dz0;               // [B, D] or NULL
};

struct ck_diagonal_scan_table {
  void (*forward)(const struct ck_diagonal_scan_args *);
  void (*backward)(const struct ck_diagonal_scan_args *);
  void (*complex_forward)(const struct ck_diagonal_scan_args *);
  void (*complex_backward)(const struct ck_diagonal_scan_args *);
  void (*min_gru_forward)(const struct ck_min_gru_args *);
  void (*min_gru_backward)(const struct ck_min_gru_args *);
  void (*selective_forward)(const struct ck_selective_scan_args *);
  void (*selective_backward)(const struct ck_selective_scan_args *);
  void (*wkv4_forward)(const struct ck_wkv4_args *);
  void (*wkv4_backward)(const struct ck_wkv4_args *);
  void (*additive_gate_forward)(const struct ck_additive_gate_args *);
  void (*additive_gate_backward)(const struct ck_additive_gate_args *);
};

/// Fills the best kernels that `level` contains; false where this architecture lacks the level.
bool ck_diagonal_scan_table_for(enum ck_level level, struct ck_diagonal_scan_table *out);

#ifdef __cplusplus
}
#endif
