// Sequential recurrent cells with point-wise gates: (h[t], c[t]) = cell(xw[t] + R h[t-1] + b, c[t-1]).
//
// The input product xw = W x + b_ih is made beforehand by one GEMM over all tokens; the kernels here
// fuse the recurrent product, the gates and the state update of every step. The backward kernel
// returns gradients of the gate pre-activations, from which the caller makes dW, dR, db and dx by
// GEMMs and column sums over all tokens.
//
// Sizes: B batch, T tokens, H hidden units (heads x units per head Hh), G gates.
// Unit u = head * Hh + j. Gate arrays are [.., G, H]: gate-major, all heads of one gate together.
#pragma once
#include "ck_common.h"

#ifdef __cplusplus
extern "C" {
#endif

enum ck_cell {
  CK_CELL_RNN_TANH = 0,   // h = tanh(a)                                                    G = 1
  CK_CELL_RNN_RELU = 1,   // h = max(a, 0)                                                  G = 1
  // r = s(a_r), z = s(a_z), n = tanh(xw_n + r (R_n h + b_n)), h = (1-z) n + z h;  rows r,z,n  G = 3
  CK_CELL_GRU = 2,
  // as above with n = tanh(xw_n + R_n (r h) + b_n): the reset gate before the product         G = 3
  CK_CELL_GRU_RESET_BEFORE = 3,
  // i,f,o = s(a), g = tanh(a_g), c = f c + i g, h = o tanh(c);  rows i,f,g,o                  G = 4
  CK_CELL_LSTM = 4,
  // Exponential gates with stabiliser m (Beck et al. 2024, xLSTM):  rows i,f,z,o              G = 4
  // m' = max(log s(a_f) + m, a_i) (m' = a_i where n = 0), i = exp(a_i - m'),
  // f = exp(log s(a_f) + m - m'), c = f c + i tanh(a_z), n = f n + i, h = s(a_o) c / n
  CK_CELL_SLSTM = 5,
};

enum ck_cell_precision {
  CK_CELL_FLOAT32 = 0,
  // R and the vector it multiplies are rounded to bfloat16; sums, gates and states stay float32.
  CK_CELL_BFLOAT16 = 1,
};

/// What forward and backward have in common.
struct ck_cell_scan_shape {
  enum ck_cell cell;
  enum ck_cell_precision precision;
  long batch, tokens;
  // Arrays of all tokens are [T, B, ..] in place of [B, T, ..]: what a step reads lies side by side.
  bool time_major;
  long heads;               // recurrent matrix is block-diagonal with `heads` blocks; 1 = dense
  long units;               // units per head Hh; H = heads * units
  const float *recurrent;   // R [heads, G * Hh, Hh], rows = outputs, gate-major inside a head
  const int32_t *reset;     // [B, T], nonzero: the state is zero before this token; or NULL
};

struct ck_cell_scan_forward_args {
  struct ck_cell_scan_shape shape;
  const float *xw;          // [B, T, G, H]
  bool bf16_xw;             // xw is bfloat16 (LSTM and GRU)
  const float *bias;        // recurrent bias [G, H], or NULL
  const float *h0;          // [B, H], or NULL = zeros
  const float *c0;          // LSTM, sLSTM: [B, H], or NULL = zeros
  const float *n0, *m0;     // sLSTM: [B, H], or NULL = zeros (both)
  float *y;                 // [B, T, H]: h of every token
  bool bf16_y;              // y is bfloat16 (LSTM and GRU)
  float *h_final;           // [B, H], or NULL
  float *c_final;           // LSTM, sLSTM: [B, H], or NULL
  float *n_final, *m_final; // sLSTM: [B, H], or NULL
  // What backward needs; all NULL when no gradient is wanted.
  bool bf16_kept;           // gates, and the GRU's cell_states, are bfloat16 (LSTM and GRU)
  float *gates;             // [B, T, G, H]: activated gates (sLSTM: a_i, a_f, tanh(a_z), s(a_o));
                            // unused by the Elman cells
  float *cell_states;       // LSTM, sLSTM: c of every token [B, T, H]. GRU: R_n h + b_n [B, T, H]
  float *normalizers;       // sLSTM: n of every token [B, T, H]
  float *stabilizers;       // sLSTM: m of every token [B, T, H]
};

struct ck_cell_scan_backward_args {
  struct ck_cell_scan_shape shape;
  const float *h0, *c0, *n0, *m0;   // as given to forward
  const float *y, *gates, *cell_states, *normalizers, *stabilizers;   // as forward left them
  bool bf16_y, bf16_dy;     // y is bfloat16, dy is (LSTM and GRU)
  const float *dy;          // [B, T, H], or NULL = zeros
  const float *dh_final;    // [B, H], or NULL = zeros
  const float *dc_final;    // [B, H], or NULL = zeros
  const float *dn_final;    // [B, H], or NULL = zeros. The sLSTM output does not depend on the scale
                            // m of (c, n), so a final m has no cotangent of its own.
  // d of the pre-activations xw + R h + b, [B, T, G, H]. This is dxw, and it is also the cotangent of
  // R h + b except for gate n of CK_CELL_GRU, where `dn_recurrent` is.
  float *dxw;
  bool bf16_dxw;            // dxw is bfloat16 (LSTM and GRU)
  bool bf16_kept;           // gates, the GRU's cell_states, dn_recurrent and previous are
  float *dn_recurrent;      // CK_CELL_GRU: cotangent of R_n h + b_n, [B, T, H]; others NULL
  float *dh0;               // [B, H], or NULL
  float *dc0;               // [B, H], or NULL
  float *dn0, *dm0;         // sLSTM: [B, H], or NULL
  // The vector that multiplied R at each token (h[t-1]; zeros after a reset), [B, T, H], or NULL:
  // dR[head] = d_preᵀ previous over B * T. For CK_CELL_GRU_RESET_BEFORE gate n uses
  // `previous_gated` = r h[t-1] in its place.
  float *previous;
  float *previous_gated;
};

struct ck_cell_scan_table {
  void (*forward)(const struct ck_cell_scan_forward_args *);
  void (*backward)(const struct ck_cell_scan_backward_args *);
};

/// Gates G of a cell.
long ck_cell_gate_count(enum ck_cell cell);

/// Fills the best kernels that `level` contains; false where this build or processor lacks them.
bool ck_cell_scan_table_for(enum ck_level level, struct ck_cell_scan_table *out);

#ifdef __cplusplus
}
#endif
