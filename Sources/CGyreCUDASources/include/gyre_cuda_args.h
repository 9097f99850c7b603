// Arguments of the kernels, one struct a kernel, passed by value. Declared once: the host imports
// this file as C, NVRTC compiles it with the kernels.
//
// Sizes count elements. An array whose data is 0 is absent. `long` has 64 bits on both sides.
#pragma once

#ifdef __CUDACC_RTC__
#define GYRE_CUDA_PTR(type) type *
#else
#include <stdint.h>
#define GYRE_CUDA_PTR(type) uint64_t
#endif

// Element types.
enum {
  GYRE_F32 = 0,
  GYRE_BF16 = 1,
  GYRE_F16 = 2,
  GYRE_F64 = 3,
  GYRE_I32 = 4,
  GYRE_I64 = 5,
  GYRE_I8 = 6,
  GYRE_U8 = 7,
};

// A tensor of any element type.
typedef struct gyre_array {
  GYRE_CUDA_PTR(void) data;
  int dtype;
  int stride;  // of a parameter: elements between sequences' own values, 0 where one serves all
} gyre_array;

// What the copy engine of sm_90 knows of a tensor, as the driver encodes it. Lies at a multiple of 64
// bytes; on the host, which cannot say so, structs that begin with maps have the device's layout when
// their size is a multiple of 64.
#ifdef __CUDACC_RTC__
#define GYRE_CUDA_MAP_ALIGN __align__(64)
#else
#define GYRE_CUDA_MAP_ALIGN
#endif
typedef struct GYRE_CUDA_MAP_ALIGN gyre_tensor_map {
  unsigned long long opaque[16];
} gyre_tensor_map;

// MARK: pointwise.cu

// y = value.
typedef struct gyre_fill_args {
  long count;
  double value;
  gyre_array y;
} gyre_fill_args;

// y = x in y's type.
typedef struct gyre_cast_args {
  long count;
  gyre_array x, y;
} gyre_cast_args;

// y = x * scale + shift.
typedef struct gyre_affine_args {
  long count;
  float scale, shift;
  gyre_array x, y;
} gyre_affine_args;

// y = f(x), or y = f'(x) * dy where dy is present. `kind` is the position in Unary.Kind.
typedef struct gyre_unary_args {
  long count;
  int kind, unused;
  gyre_array x, dy, y;
} gyre_unary_args;

// How an operand follows from the index i of the output.
enum {
  GYRE_SAME = 0,     // i
  GYRE_PERIODIC = 1, // (i / inner) % middle
  GYRE_STRIDED = 2,  // by strides
};
typedef struct gyre_operand {
  gyre_array array;
  int mode, unused;
  long inner, middle;
  long stride[8];
} gyre_operand;

// y = a op b, or the parts of dy that go to a and to b for a maximum or minimum.
typedef struct gyre_binary_args {
  long count;
  int kind, rank;  // kind: position in Binary.Kind
  long shape[8];   // of the output, outermost first
  gyre_operand a, b;
  gyre_array y;
  gyre_array dy, db;  // for choose: y gets the left part, db the right one
} gyre_binary_args;

// y = act(gate) * up, or its gradient dx. x: [rows, 2 columns].
typedef struct gyre_glu_args {
  long rows, columns;
  int kind, unused;  // of Unary.Kind
  gyre_array x, y;
  gyre_array dy, dx;
} gyre_glu_args;

// MARK: gemv.cu

// y [m, n] = x [m, k] w [n, k]' + bias, m at most 4, k a multiple of 8, x and w aligned to 16 bytes.
typedef struct gyre_gemv_args {
  long m, n, k;
  gyre_array x, w, bias, y;
} gyre_gemv_args;

// MARK: blocks.cu

enum {
  GYRE_BLOCK_Q4_0 = 0,
  GYRE_BLOCK_Q4_1 = 1,
  GYRE_BLOCK_Q5_0 = 2,
  GYRE_BLOCK_Q5_1 = 3,
  GYRE_BLOCK_Q8_0 = 4,
  GYRE_BLOCK_Q4_K = 5,
  GYRE_BLOCK_Q5_K = 6,
  GYRE_BLOCK_Q6_K = 7,
};

// w: `rows` of `columns` values in blocks, whole blocks a row. block_gemv: y [count, rows] =
// x [count, columns] w' + bias, count at most 4, x aligned to 16 bytes. block_rows: y [count, columns],
// the rows that tokens name, or the first `count` where there are none; y aligned to 16 bytes.
typedef struct gyre_block_args {
  long rows, columns, count;
  GYRE_CUDA_PTR(const void) w;
  GYRE_CUDA_PTR(const int) tokens;
  gyre_array x, bias, y;
} gyre_block_args;

// MARK: layout.cu

// `outer` runs of `run` elements from x to y, of equal types bytewise in units of `unit` bytes;
// offsets, steps and `run` then count units.
typedef struct gyre_runs_args {
  long outer, run, x_offset, x_step, y_offset, y_step;
  int unit;
  int adds;  // y += x, converting, elementwise
  gyre_array x, y;
} gyre_runs_args;

// Copies of whole arrays, each with a row of blocks.
#define GYRE_COPIES 128
typedef struct gyre_copies_args {
  GYRE_CUDA_PTR(const void) x[GYRE_COPIES];
  GYRE_CUDA_PTR(void) y[GYRE_COPIES];
  long bytes[GYRE_COPIES];
} gyre_copies_args;

// y[i] = x[permuted i], units of 1, 2, 4, 8 or 16 bytes.
typedef struct gyre_permute_args {
  long count;
  int rank, unit;
  long shape[8], stride[8];  // of y; steps of x
  GYRE_CUDA_PTR(const void) x;
  GYRE_CUDA_PTR(void) y;
} gyre_permute_args;

// y[b, j, i] = x[b, i, j].
typedef struct gyre_transpose_args {
  long batch, rows, columns;  // of x
  int unit, unused;           // 2 or 4 bytes
  GYRE_CUDA_PTR(const void) x;
  GYRE_CUDA_PTR(void) y;
} gyre_transpose_args;

// MARK: reduce.cu

// out[r * splits + s] = sum over part s of row r.
typedef struct gyre_row_sum_args {
  long rows, columns;
  int splits, squares;  // squares: of x * x
  gyre_array x, out;
} gyre_row_sum_args;

// out[s * columns + c] = sum over part s of the rows.
typedef struct gyre_column_sum_args {
  long rows, columns;
  long splits;
  gyre_array x, out;
} gyre_column_sum_args;

// out = sum over the axes that `out` does not have; the general case.
typedef struct gyre_sum_to_args {
  long count, reduced;  // elements of out, elements of x for each
  int rank, unused;
  long kept_shape[8], kept_stride[8];
  long reduced_shape[8], reduced_stride[8];
  gyre_array x, out;
} gyre_sum_to_args;

// y = softmax(x), or dx = y * (dy - <y, dy>).
typedef struct gyre_softmax_args {
  long rows, columns;
  gyre_array x, y, dy, dx;
} gyre_softmax_args;

// index[r] = position of the largest element of row r, the first of equals.
typedef struct gyre_argmax_args {
  long rows, columns;
  gyre_array x;
  GYRE_CUDA_PTR(int) index;
} gyre_argmax_args;

#define GYRE_SQUARES_ENTRIES 96
#define GYRE_SQUARES_PARTS 64
// partial[first + entry * parts + part] = sum of squares of a part of an array.
typedef struct gyre_squares_args {
  long first;
  GYRE_CUDA_PTR(float) partial;
  long count[GYRE_SQUARES_ENTRIES];
  gyre_array x[GYRE_SQUARES_ENTRIES];
} gyre_squares_args;

// out[0] = sum of x, in double.
typedef struct gyre_total_args {
  long count;
  GYRE_CUDA_PTR(const float) x;
  gyre_array out;
} gyre_total_args;

// MARK: norm.cu

enum { GYRE_NORM_RMS = 0, GYRE_NORM_LAYER = 1, GYRE_NORM_L2 = 2 };
enum { GYRE_GATE_NONE = 0, GYRE_GATE_AFTER = 1, GYRE_GATE_BEFORE = 2 };
// Of z; z itself has no gradients here.
enum { GYRE_GATE_SIGMOID, GYRE_GATE_SILU, GYRE_GATE_PLAIN };

// Norms of rows. Weight and bias have `period` elements, a multiple of `columns`.
typedef struct gyre_norm_args {
  long rows, columns, period;
  int kind, gate, gate_function;
  float epsilon;
  long each;  // rows of a sequence where weight and bias are sequences' own, otherwise 0
  gyre_array x, z, weight, bias, y;
  gyre_array dy, dx, dz;
  // Without a gate: what is added to x first, and where the sum goes; dy is the sum of two where one more is
  // present; dsum is added to dx.
  gyre_array added, sum, dy_more, dsum;
  GYRE_CUDA_PTR(float) statistics;  // [rows, 2]: mean, 1 / deviation
  // Sums over part s of the rows, [splits, period].
  long splits;
  GYRE_CUDA_PTR(float) dweight;
  GYRE_CUDA_PTR(float) dbias;
} gyre_norm_args;

// MARK: loss.cu

// out[i] = table[tokens[i]], or dtable from dout, or dout added to dtable.
typedef struct gyre_embedding_args {
  long count, vocabulary, width;
  GYRE_CUDA_PTR(const int) tokens;
  gyre_array table, out;
  gyre_array dout, dtable;
  int rows_per_block, adds;
} gyre_embedding_args;

// out[0] = number of targets >= 0 (at least 1).
typedef struct gyre_count_args {
  long count;
  GYRE_CUDA_PTR(const int) targets;
  GYRE_CUDA_PTR(float) out;
} gyre_count_args;

// Loss of each row and, where present, the gradient (softmax - one hot) * scale / counted.
typedef struct gyre_cross_entropy_args {
  long rows, columns;
  gyre_array logits, gradient;  // may be the same memory
  GYRE_CUDA_PTR(const int) targets;
  GYRE_CUDA_PTR(const float) counted;
  gyre_array scale;  // [1]; absent: 1
  gyre_array loss;   // [rows]; may be absent
} gyre_cross_entropy_args;

// out[0] = sum of loss / counted.
typedef struct gyre_mean_args {
  long count;
  gyre_array x;
  GYRE_CUDA_PTR(const float) counted;
  gyre_array out;
} gyre_mean_args;

// MARK: optimizer.cu

#define GYRE_ADAMW_CHUNK 8192
// What a step decided on the device says to updates; the numbers of StepDecision's control.
typedef struct gyre_step_control {
  double taken, schedule, correction1, correction2;
} gyre_step_control;

typedef struct gyre_adamw_entry {
  long count, first_chunk;
  gyre_array gradient;
  GYRE_CUDA_PTR(float) parameter;
  GYRE_CUDA_PTR(float) m;
  GYRE_CUDA_PTR(float) v;
  GYRE_CUDA_PTR(const float) factor;
  GYRE_CUDA_PTR(void) shadow;  // the parameter in bfloat16; may be absent
  GYRE_CUDA_PTR(const gyre_step_control) control;  // may be absent
  double learning_rate, scale;  // with a control: times the schedule and this
  float weight_decay, beta1, beta2, rest1, rest2;  // rest: 1 - beta
  float epsilon, correction1, correction2;
} gyre_adamw_entry;

// AdamW over all parameters: block c works on the chunk of the last entry that starts at or before c.
typedef struct gyre_adamw_args {
  long entries;
  GYRE_CUDA_PTR(const gyre_adamw_entry) entry;
} gyre_adamw_args;

typedef struct gyre_momentum_args {
  long count;
  gyre_array gradient;
  GYRE_CUDA_PTR(const float) factor;
  GYRE_CUDA_PTR(const gyre_step_control) control;  // may be absent
  GYRE_CUDA_PTR(const float) p_in;
  GYRE_CUDA_PTR(const float) m_in;
  GYRE_CUDA_PTR(float) p;
  GYRE_CUDA_PTR(float) m;
  double learning_rate, scale;  // with a control: times the schedule and this
  float momentum, weight_decay;
  int nesterov, unused;
} gyre_momentum_args;

#define GYRE_DECISION_LOSSES 256
// StepDecision: whether the step is taken, and what updates need to know.
typedef struct gyre_decision_args {
  GYRE_CUDA_PTR(const float) squares;
  GYRE_CUDA_PTR(const double) numbers;
  GYRE_CUDA_PTR(const double) ledger_in;
  GYRE_CUDA_PTR(float) factor;
  GYRE_CUDA_PTR(gyre_step_control) control;
  GYRE_CUDA_PTR(double) record;
  GYRE_CUDA_PTR(double) ledger;
  double clip_norm, spike_factor;  // 0: neither clips nor watches
  int losses, number_count, maximum_skips, unused;
  gyre_array loss[GYRE_DECISION_LOSSES];
} gyre_decision_args;

#define GYRE_UPDATE_ENTRIES 128
typedef struct gyre_update_entry {
  long count;
  GYRE_CUDA_PTR(const float) old_value;
  GYRE_CUDA_PTR(const float) new_value;
  GYRE_CUDA_PTR(float) out;
} gyre_update_entry;
// StateUpdate: new values where the step is taken; block row y works on entry y.
typedef struct gyre_update_args {
  GYRE_CUDA_PTR(const gyre_step_control) control;
  gyre_update_entry entry[GYRE_UPDATE_ENTRIES];
} gyre_update_args;

// MARK: sequence.cu

#define GYRE_CONVOLUTION_PIECES 4
// Depthwise causal convolution over x [batch, tokens, width]; `chunk` tokens a thread.
typedef struct gyre_convolution_args {
  long batch, tokens, width;
  int taps, silu, chunk, unused;
  gyre_array x, weight, bias, window;
  GYRE_CUDA_PTR(const int) reset;
  gyre_array y, window_final;
  gyre_array dy, dwindow_final, dx, dwindow;
  // convolution.cu: y, or dy, in pieces that end before these channels.
  long end[GYRE_CONVOLUTION_PIECES];
  gyre_array piece[GYRE_CONVOLUTION_PIECES];
  // Partial sums over the tokens of a thread, [batch * chunks, taps + 1, width]; bias last.
  GYRE_CUDA_PTR(float) partial;
} gyre_convolution_args;

// The sums of a convolution's partials: dweight [width, taps], dbias [width].
typedef struct gyre_convolution_sum_args {
  long parts, width;
  int taps, unused;
  GYRE_CUDA_PTR(const float) partial;
  gyre_array dweight, dbias;
} gyre_convolution_sum_args;

#define GYRE_ROTARY_PAIRS 256  // most of the wide kernel
typedef struct gyre_rotary_args {
  long batch, tokens, heads, size, rotated, offset;
  double base;
  int interleaved, inverts;
  gyre_array x, y;
} gyre_rotary_args;

// RWKV's token shift: y [mixes, batch, tokens, width].
typedef struct gyre_token_shift_args {
  long batch, tokens, width, mixes;
  gyre_array x, mix, last;
  GYRE_CUDA_PTR(const int) reset;
  gyre_array y, last_final;
  gyre_array dy, dlast_final, dx, dlast;
  long splits;
  GYRE_CUDA_PTR(float) dmix;  // [splits, mixes, width]
} gyre_token_shift_args;

// MARK: rwkv7.cu

// Rows are [batch, tokens, heads] of the head's channels; parameters [heads, channels].
// sums: [parts, count, heads, channels] of the parameters' gradients, in the order they are listed.
// tokens: of a sequence where a parameter is sequences' own, otherwise 0.
typedef struct gyre_rwkv7_keys_args {
  long rows, heads, tokens;
  float epsilon;
  int unused;
  gyre_array key, rate, decay;
  gyre_array key_scale, key_rate, rate_bias, decay_bias;
  gyre_array written, log_decay, erase, write;
  gyre_array dwritten, dlog_decay, derase, dwrite;  // may be absent
  gyre_array dwritten_more;                         // where present: added to dwritten
  gyre_array dkey, drate, ddecay;
  GYRE_CUDA_PTR(float) sums;
} gyre_rwkv7_keys_args;

typedef struct gyre_rwkv7_readout_args {
  long rows, heads, tokens;
  float epsilon;
  int unused;
  gyre_array y, query, written, value, gate;
  gyre_array bonus, weight, bias;
  gyre_array out, dout;
  gyre_array dy, dquery, dwritten, dvalue, dgate;
  GYRE_CUDA_PTR(float) sums;
} gyre_rwkv7_readout_args;

// MARK: blend.cu

// out = x + (y - x) * sigmoid(gate + bias), rows of `columns` in eights; bias [columns].
// sums: of the gate's gradient, [parts, columns].
typedef struct gyre_blend_args {
  long rows, columns, each;  // each: rows of a sequence
  gyre_array x, y, gate, bias, out;
  gyre_array dout, dx, dy, dgate;
  gyre_array dout_more, dy_before;  // where present: added to dout, and to dy
  GYRE_CUDA_PTR(float) sums;
} gyre_blend_args;

// y = v s, z = v d: rows of `columns` in heads of `size`, s [rows, columns / size], d a head or column
// each. For gradients y and z are the cotangents. sums: of d's gradient by columns, [parts, columns].
typedef struct gyre_value_scales_args {
  long rows, columns, size;
  int d_per_column, unused;
  gyre_array v, s, d, y, z;
  gyre_array dv, ds;
  GYRE_CUDA_PTR(float) sums;
} gyre_value_scales_args;

// g = -e^a softplus(z + b) and, of rows of `2 * heads`, beta = strength * sigmoid(z'); without strengths s =
// softplus(z + b) in its place. sums: of the gradients of b and a, [parts, 2, heads].
typedef struct gyre_step_gates_args {
  long rows, heads, width;  // width: of a row of z
  float strength;           // 0: s
  int unused;
  gyre_array z, bias, log_rate;
  gyre_array g, second;     // or their gradients
  gyre_array dz;
  GYRE_CUDA_PTR(float) sums;
} gyre_step_gates_args;

// Token shift with an array for each mix; `chunk` tokens a thread, four channels.
#define GYRE_MIXES 8
typedef struct gyre_token_mixes_args {
  long batch, tokens, width, mixes;
  long chunk;
  gyre_array x, last;
  gyre_array last_final, dlast_final, dx, dlast;
  gyre_array mix[GYRE_MIXES];
  gyre_array y[GYRE_MIXES];   // or their gradients
  gyre_array more;            // where present: added to the gradient of mix `more_of`
  long more_of;
  GYRE_CUDA_PTR(float) sums;  // [batch * chunks, mixes, width]
} gyre_token_mixes_args;

// One token: sum = x + added, n = its norm, y_m = n + (last - n) mix_m; rows [batch, width].
typedef struct gyre_normed_mixes_args {
  long batch, width;
  int mixes, centers;
  float epsilon;
  int unused;
  gyre_array x, added, weight, bias, last;
  gyre_array sum, last_final;
  gyre_array mix[GYRE_MIXES];
  gyre_array y[GYRE_MIXES];
} gyre_normed_mixes_args;
// MARK: row_products.cu

// y = f(x W') of up to 256 rows for a few x and W in one launch. A cluster of blocks has two parts of the rows,
// `columns` tiles of columns and `splits` parts of the sums, columns * splits * 2 = GYRE_ROW_CLUSTER; clusters from
// `first` on belong to a product. x comes by boxes of 64 rows, W of half a tile, both of 64 inputs.
enum { GYRE_ROW_PRODUCTS = 8, GYRE_ROW_HEIGHT = 128, GYRE_ROW_THREADS = 384, GYRE_ROW_CLUSTER = 4 };
// f: of one output, or SiLU of one of the first half of the outputs times its partner in the second.
enum { GYRE_ROW_PLAIN, GYRE_ROW_TANH, GYRE_ROW_SIGMOID, GYRE_ROW_RELU_SQUARED, GYRE_ROW_GATED };
#define GYRE_ROW_STAGES(columns) ((columns) == 256 ? 4 : (columns) == 192 ? 5 : (columns) == 128 ? 6 : 8)
typedef struct gyre_row_product {
  gyre_tensor_map x, w;
  GYRE_CUDA_PTR(void) y;  // [rows, outputs]
  int outputs, steps;     // of y; 64 inputs each
  int first, function, is_float;
  int padding[9];
} gyre_row_product;
typedef struct gyre_row_products_args {
  gyre_row_product of[GYRE_ROW_PRODUCTS];
  int rows, count, columns, splits;
  int padding[12];
} gyre_row_products_args;
// Shared memory of a block.
#ifndef __CUDACC_RTC__
static inline long gyre_row_products_shared(long columns) {
  return 1024 + GYRE_ROW_STAGES(columns) * ((GYRE_ROW_HEIGHT + columns) * 128 + 16);
}
#endif
