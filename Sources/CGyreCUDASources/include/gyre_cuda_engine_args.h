// Arguments of the engines' kernels; see gyre_cuda_args.h. Shapes in comments are row-major.
#pragma once
#include "gyre_cuda_args.h"

// MARK: diagonal_scan_base.cu, min_gru.cu

// h[t] = a[t] * h[t-1] + u[t] over [batch, tokens, width]; for minGRU a and u are the
// pre-activations z and c.
typedef struct gyre_scan_args {
  long batch, tokens, width;
  int is_constant, is_log;  // a: [width]; ln a
  gyre_array a, u, h0;      // h0: [batch, width]
  GYRE_CUDA_PTR(const int) reset;  // [batch, tokens]
  gyre_array h, h_final;
  gyre_array dh, dh_final;
  gyre_array da, du, dh0;  // da of a constant: [batch, width], to be summed
  long pitch;              // of one token of minGRU: between rows of a and of u
} gyre_scan_args;

// MARK: complex_scan.cu

// The same with complex numbers, real and imaginary parts apart.
typedef struct gyre_complex_scan_args {
  long batch, tokens, width;
  int is_constant, unused;
  GYRE_CUDA_PTR(const int) reset;
  gyre_array a[2], u[2], h0[2], h[2], h_final[2];
  gyre_array dh[2], dh_final[2], da[2], du[2], dh0[2];
} gyre_complex_scan_args;

// MARK: selective_scan.cu

#define GYRE_SELECTIVE_INTERVAL 16
#define GYRE_SELECTIVE_STATES 256
typedef struct gyre_selective_scan_args {
  long batch, tokens, width, states;  // at most GYRE_SELECTIVE_STATES
  gyre_array x, step, A, B, C, skip, h0;
  GYRE_CUDA_PTR(const int) reset;
  gyre_array y, h_final;
  gyre_array kept;  // [batch, ceil(tokens / 16), states, width]
  gyre_array dy, dh_final, dx, dstep, dh0;
  // To be summed: [batch, width, states], [batch, width], and [blocks, batch, tokens, states] twice.
  GYRE_CUDA_PTR(float) dA;
  GYRE_CUDA_PTR(float) dskip;
  GYRE_CUDA_PTR(float) dB;
  GYRE_CUDA_PTR(float) dC;
} gyre_selective_scan_args;

// MARK: attention.cu

typedef struct gyre_attention_args {
  long batch, queries, keys, heads, key_heads, key_size, value_size;
  long window;  // 0: all
  float scale;
  int unused;
  gyre_array q, k, v, g;             // g: [batch, keys, heads]
  GYRE_CUDA_PTR(const int) starts;   // [batch, keys]
  GYRE_CUDA_PTR(double) forget;      // running sums of g, [batch, heads, keys]
  GYRE_CUDA_PTR(int) first;          // first key that a place sees, [batch, heads, keys]
  gyre_array y, sums;                // sums: [batch, queries, heads]
  gyre_array dy, dq, dk, dv, dg;
  GYRE_CUDA_PTR(float) delta;        // <dy, y>, [batch, queries, heads]
  GYRE_CUDA_PTR(float) columns;      // sums of ds over queries, [batch, heads, keys]
  GYRE_CUDA_PTR(float) rows;         // and over keys, [batch, heads, queries]
} gyre_attention_args;

// MARK: attention_step.cu

// One token against caches [batch, capacity, key_heads, size] in float32, of which `position` are filled; its
// key and value go there. position: [1].
typedef struct gyre_attention_step_args {
  long batch, capacity, heads, key_heads, size;
  double base;
  int rotated, interleaved;  // channels that turn; 0: none
  float scale;
  int unused;
  gyre_array q, k, v, keys, values, position, y;
} gyre_attention_step_args;

// MARK: attention_tiles.cu

// For heads of up to 64 or 128 channels: groups of warps that multiply, each with 64 rows of an item,
// and tiles on their way.
#define GYRE_TILES_FORWARD_GROUPS(size) ((size) == 64 ? 3 : 2)
#define GYRE_TILES_FORWARD_STAGES(size) ((size) == 64 ? 4 : 2)
#define GYRE_TILES_QUERY_GROUPS(size) ((size) == 64 ? 3 : 2)
#define GYRE_TILES_QUERY_STAGES(size) ((size) == 64 ? 4 : 3)
#define GYRE_TILES_KEY_GROUPS(size) 2
#define GYRE_TILES_KEY_STAGES(size) ((size) == 64 ? 4 : 2)
#ifndef __CUDACC_RTC__
// Rows of an item, and shared memory: rows of the groups, tiles (128 keys and values; 64 of both; 64
// queries and slopes with three numbers each), barriers, room to begin at a multiple of 1,024 bytes.
typedef struct gyre_tiles_launch {
  long height, shared;
} gyre_tiles_launch;
static inline gyre_tiles_launch gyre_tiles_forward(long size) {
  const long groups = GYRE_TILES_FORWARD_GROUPS(size), stages = GYRE_TILES_FORWARD_STAGES(size);
  return (gyre_tiles_launch){
      64 * groups, 1024 + 128 * size * (groups + 4 * stages) + 32 + 32 * stages};
}
static inline gyre_tiles_launch gyre_tiles_queries(long size) {
  const long groups = GYRE_TILES_QUERY_GROUPS(size), stages = GYRE_TILES_QUERY_STAGES(size);
  return (gyre_tiles_launch){
      64 * groups, 1024 + 128 * size * 2 * (groups + stages) + 32 + 16 * stages};
}
static inline gyre_tiles_launch gyre_tiles_keys(long size) {
  const long groups = GYRE_TILES_KEY_GROUPS(size), stages = GYRE_TILES_KEY_STAGES(size);
  return (gyre_tiles_launch){
      64 * groups, 1024 + 128 * size * 2 * (groups + stages) + 32 + (768 + 16) * stages};
}
#endif

// Boxes of 64 rows and 64 channels of one head; q, k, v, dy in bfloat16, channels multiples of 8.
typedef struct gyre_attention_tile_args {
  gyre_tensor_map q, k, v, dy;
  gyre_attention_args a;
  int section;  // rows (sequence and head) whose blocks are neighbours in the order of work
  int padded;   // queries, up to a multiple of 64
  // Of each query: log2 of the softmax's sum, <dy, y>, the first key seen; [batch, heads, padded].
  GYRE_CUDA_PTR(float) exponents;
  GYRE_CUDA_PTR(float) means;
  GYRE_CUDA_PTR(int) low;
  GYRE_CUDA_PTR(int) drawn;  // items taken: of the forward pass, of keys, of queries; zero at first
  long unused[6];                // to a multiple of 64 bytes
} gyre_attention_tile_args;

// MARK: linear_attention_base.cu, delta_rule_base.cu

enum { GYRE_DECAY_NONE = 0, GYRE_DECAY_CONSTANT = 1, GYRE_DECAY_SCALAR = 2, GYRE_DECAY_VECTOR = 3 };
enum {
  GYRE_DIVISOR_NONE = 0,
  GYRE_DIVISOR_SUM = 1,
  GYRE_DIVISOR_FLOOR = 2,
  GYRE_DIVISOR_EXPONENTIAL = 3,
};

// Tokens between the states that the backward pass keeps, and columns of the state of one block.
#define GYRE_HEAD_INTERVAL 16
#define GYRE_HEAD_COLUMNS 16

// One recurrence with a K × V state a head, walked token by token. A block holds 16 columns of the
// state of one head: 16 lanes a column, row i * 16 + lane in element i of a lane.
typedef struct gyre_head_args {
  long batch, tokens, heads, key_heads, key_size, value_size;
  float scale, floor, epsilon;
  int decay, divisor, unused;
  gyre_array q, k, v, g;
  gyre_array input_gate, bonus;  // linear attention
  gyre_array beta, a, b;         // delta rule: beta, or a and b
  gyre_array state, norm_state, max_state;
  GYRE_CUDA_PTR(const int) reset;
  gyre_array y, final_state, final_norm, final_max;
  gyre_array dy, dfinal_state, dfinal_norm, dstate, dnorm_state;
  // Walks `first` to `last`; a backward pass goes through the sequence in such segments from its end.
  long first, last;
  GYRE_CUDA_PTR(float) kept;       // states at multiples of the interval: [B, H, slots, K, V]
  GYRE_CUDA_PTR(float) kept_norm;  // [B, H, slots, K]
  GYRE_CUDA_PTR(float) kept_max;   // [B, H, slots]
  long slots;
  GYRE_CUDA_PTR(float) carry;       // dS between segments, [B, H, K, V]
  GYRE_CUDA_PTR(float) carry_norm;  // [B, H, K]
  GYRE_CUDA_PTR(float) row_dots;    // <dy, y> of each token and head, [B, T, H]
  // Sums over a block's columns, to be summed over blocks: [tiles, B, segment, H, vectors, K]
  GYRE_CUDA_PTR(float) partial;
  GYRE_CUDA_PTR(float) partial_scalar;  // [tiles, B, segment, H]
  GYRE_CUDA_PTR(float) partial_bonus;   // [tiles, B, H, K], added to over segments
  gyre_array dv;
} gyre_head_args;

// MARK: head_step.cu

// What a step does besides the recurrence, before and after it.
enum {
  GYRE_STEP_PLAIN,
  // q and k of unit length; g = -e^rate softplus(z + bias), beta = strength sigmoid(z') of z [B, 2 H]; behind it
  // y / sqrt(mean y^2 + eps) * weight, times silu or sigmoid of gate.
  GYRE_STEP_DELTA,
  // Input gate c tanh((z + bias) / c), g = log sigmoid of the same of z'; c is `strength`, bias [2 H].
  GYRE_STEP_MLSTM,
  // rwkv7.cu's keys, blend.cu with the first layer's values and rwkv7.cu's readout.
  GYRE_STEP_RWKV7,
};
typedef struct gyre_head_step_args {
  gyre_head_args of;
  int surrounds, gate_is_silu;
  float strength, key_epsilon, norm_epsilon;
  int unused;
  gyre_array z, bias, log_rate;
  gyre_array gate, weight, norm_bias;             // [B, H, V]; [V], of RWKV-7 [H, V]
  gyre_array rate, decay, key_scale, key_rate;    // [B, H, K] and [H, K]; rate's bias is `bias`
  gyre_array decay_bias, bonus;                   // [H, K]
  gyre_array first, amount, amount_bias;          // [B, H, V] and [H, V], or absent
} gyre_head_step_args;

// Sums of partials into gradients, for the tokens of a segment.
typedef struct gyre_head_sum_args {
  long batch, tokens, heads, key_heads, key_size, tiles, first, last;
  int vectors, decay;
  GYRE_CUDA_PTR(const float) partial;
  GYRE_CUDA_PTR(const float) partial_scalar;
  gyre_array k;
  // Vectors in the order of the partials: dq, dk, dg, then da and db.
  gyre_array dq, dk, dg, da, db;
  gyre_array dscalar;              // d beta or d input gate, [B, T, H]
  GYRE_CUDA_PTR(float) dg_head;    // constant decay: [B, T, H], to be summed
  int scalar_is_gate, unused;      // d input gate = <k, dk>
} gyre_head_sum_args;

// out[r, c] = sum over g of x[r, g, c] in bfloat16, columns a multiple of 8; two arrays at once.
typedef struct gyre_group_sum_args {
  long rows, group, columns;
  GYRE_CUDA_PTR(const void) x[2];
  gyre_array out[2];
} gyre_group_sum_args;

// MARK: bonus.cu

// out[t] = x[t + 1] in bfloat16, rows of `columns`, a multiple of 8; 0 before a reset and at the end.
typedef struct gyre_shift_args {
  long batch, tokens, columns;
  GYRE_CUDA_PTR(const void) x;
  GYRE_CUDA_PTR(void) out;
  GYRE_CUDA_PTR(const int) reset;  // [batch, tokens]
} gyre_shift_args;

// All in bfloat16 but u, state; key_size at most 128 in the gradient.
typedef struct gyre_bonus_args {
  long batch, tokens, heads, key_size, value_size;
  float scale;
  int unused;
  gyre_array q, k, v, u;  // u: [heads, key_size]
  gyre_array state;       // [batch, heads, key_size, value_size] float32, or absent
  gyre_array o;           // what moved queries read; backward their gradient
  gyre_array y, dy;
  gyre_array dq, dk, dv;
  GYRE_CUDA_PTR(const int) reset;
  GYRE_CUDA_PTR(float) dstate;   // added to, or null
  GYRE_CUDA_PTR(float) partial;  // gradients of u to be summed: [splits, batch, heads, key_size]
} gyre_bonus_args;

// out[r] = <x[r], y[r]>.
typedef struct gyre_row_dot_args {
  long rows, columns;
  gyre_array x, y;
  GYRE_CUDA_PTR(float) out;
} gyre_row_dot_args;

// MARK: cell_scan_base.cu

// The point-wise part of a cell at one token; the products with R run between. Gates lie in blocks of
// heads * units; what products read and write is [heads, batch, ...].
typedef struct gyre_cell_args {
  long batch, tokens, heads, units, token;
  int cell;   // position in CellScan.Cell
  int phase;  // of gruOriginal, whose reset gate comes before the second product
  GYRE_CUDA_PTR(const int) reset;
  gyre_array xw, bias, h0, c0, n0, m0;
  // The state before the next token, float and as the product takes it.
  GYRE_CUDA_PTR(float) h;
  GYRE_CUDA_PTR(float) c;
  GYRE_CUDA_PTR(float) n;
  GYRE_CUDA_PTR(float) m;
  gyre_array operand;
  gyre_array gated;               // r * h for gruOriginal
  GYRE_CUDA_PTR(float) product;   // R h: [heads, batch, gates * units]; gruOriginal: two gates
  GYRE_CUDA_PTR(float) product2;  // gruOriginal: the candidate's
  gyre_array y, h_final, c_final, n_final, m_final, gates, cells, normalizers, stabilizers;
  // Backward. dh and dc are those of the state after the token; the product adds to dh.
  GYRE_CUDA_PTR(float) dh;
  GYRE_CUDA_PTR(float) dc;
  GYRE_CUDA_PTR(float) dn;
  gyre_array dproduct;           // cotangent of R h + b, as `product`
  gyre_array dproduct2;          // as `product2`
  GYRE_CUDA_PTR(float) dgated;   // cotangent of r * h
  gyre_array dy, dh_final, dc_final, dn_final, dxw, dh0, dc0, dn0, dm0, previous, second;
} gyre_cell_args;

// MARK: cell_team.cu, cell_team_gradient.cu

// Tokens `first` to `last` of a cell whose weights stay in registers. Grid: slices of a head's units,
// pairs of a head and a group of rows from `first_pair` on. States in the order h, c, n, m.
typedef struct gyre_cell_team_args {
  long batch, tokens, heads, units, first, last, first_pair;
  GYRE_CUDA_PTR(const void) weight;  // bfloat16 [heads, gates * units, units]
  // Per pair and token 512 bytes for each 32 operands and 8 rows, filled with ones.
  GYRE_CUDA_PTR(void) exchange;
  GYRE_CUDA_PTR(void) exchange2;     // of gruOriginal's other product
  GYRE_CUDA_PTR(const int) reset;
  gyre_array xw, bias;
  gyre_array start[4];  // before the first token; backward: the cotangents after the last
  gyre_array final[4];  // after the last; backward: the cotangents before the first
  gyre_array y, gates, cells, normalizers, stabilizers;
  gyre_array given[4];  // backward: the states before token 0
  gyre_array dy, dxw, previous, second;
} gyre_cell_team_args;

// MARK: cell_units.cuh, cell_rows.cuh

enum {
  GYRE_DESCRIBED_STATES = 8,
  GYRE_DESCRIBED_PARAMETERS = 32,
  GYRE_DESCRIBED_MATRICES = 24,
  GYRE_DESCRIBED_SPACES = 16,
};
// A state of a described cell. Forward: its value before the first token, after the last, and over
// time. Backward: the cotangent after the last token (`first`), before the first (`last`), the state
// before the first and over time.
typedef struct gyre_described_state {
  gyre_array first, last, start, history;
} gyre_described_state;

// A described cell over all tokens, with the code made for it.
typedef struct gyre_described_args {
  long batch, tokens, width;           // width: of all pre-activations of a token
  long widths[GYRE_DESCRIBED_SPACES];  // of the spaces
  GYRE_CUDA_PTR(const int) reset;
  gyre_array gates, dgates, dy;
  gyre_described_state states[GYRE_DESCRIBED_STATES];
  gyre_array parameters[GYRE_DESCRIBED_PARAMETERS];
  GYRE_CUDA_PTR(float) gradients[GYRE_DESCRIBED_PARAMETERS];     // of parameters, [batch, W]
  GYRE_CUDA_PTR(const float) matrices[GYRE_DESCRIBED_MATRICES];  // [heads or 1, rows, columns]
  GYRE_CUDA_PTR(const float) transposed[GYRE_DESCRIBED_MATRICES];  // [heads or 1, columns, rows]
  // Products R v [batch, tokens, rows], their cotangents, and the distinct v.
  gyre_array products[GYRE_DESCRIBED_MATRICES];
  gyre_array dproducts[GYRE_DESCRIBED_MATRICES];
  gyre_array operands[GYRE_DESCRIBED_MATRICES];
  // Units that mix: rows of the batch and blocks of a team, the first row of the first team, the tokens
  // of a launch, floats of a team's exchange at one token.
  long rows, slices, first_row, first, last, told;
  GYRE_CUDA_PTR(float) exchange;  // [teams, last - first, told], filled with the pattern of no number
  GYRE_CUDA_PTR(float) memory;    // of every block, where shared memory is too small
  long memory_stride;
  GYRE_CUDA_PTR(float) reports;  // Newton's method: [blocks, 4]
  gyre_array report;             // [4]
  long blocks;
} gyre_described_args;

// y[h, c, r] = x[h, r, c].
typedef struct gyre_cell_transpose_args {
  long heads, rows, columns;
  GYRE_CUDA_PTR(const float) x;
  GYRE_CUDA_PTR(float) y;
} gyre_cell_transpose_args;

// MARK: channel_scans.cu

typedef struct gyre_wkv4_args {
  long batch, tokens, channels;
  gyre_array w, u, k, v, num0, den0, max0;
  GYRE_CUDA_PTR(const int) reset;
  gyre_array y, num, den, max;
  // Backward: what each token finds [3, batch, tokens, channels] and the last scale [batch, channels],
  // kept by a forward pass that gives no outputs; dw and du [batch, channels], to be summed.
  GYRE_CUDA_PTR(float) sums;
  GYRE_CUDA_PTR(float) last_max;
  gyre_array dy, dnum, dden, dk, dv, dnum0, dden0;
  GYRE_CUDA_PTR(float) dw;
  GYRE_CUDA_PTR(float) du;
} gyre_wkv4_args;

typedef struct gyre_additive_gate_args {
  long batch, tokens, channels;
  gyre_array x, z0;
  GYRE_CUDA_PTR(const int) reset;
  gyre_array w, g, z;
  gyre_array dw, dg, dz, dx, dz0;
} gyre_additive_gate_args;

// MARK: block_scan.cu, block_scan_large.cu

// h[t] = A[t] h[t-1] + u[t] in `blocks` blocks of `size`; A by columns [batch, tokens, blocks, size, size].
typedef struct gyre_block_scan_args {
  long batch, tokens, blocks, size;
  gyre_array A, u, h0;
  GYRE_CUDA_PTR(const int) reset;  // [batch, tokens]
  gyre_array h, h_final;
  gyre_array dh, dh_final, dA, du, dh0;
} gyre_block_scan_args;

// MARK: mesa.cu, mesa_solve.cu

#define GYRE_MESA_STAGE 16      // tokens that are read together; chunks are multiples
#define GYRE_MESA_REGISTERS 128  // keys up to which H lies in registers
#define GYRE_MESA_KEYS 512
// (H[t] + diag ridge) x[t] = b[t] by conjugate gradients, with H[t] = e^g H[t-1] + beta k k'. Chunks of
// tokens are independent once H before each is known.
typedef struct gyre_mesa_args {
  long batch, tokens, heads, keys;  // keys: channels of a key
  long chunk, chunks;
  int steps, keeps_first;  // whether `states` has H before the first token too
  float epsilon;
  int unused;
  gyre_array b, k;        // [batch, tokens, heads, keys]
  gyre_array g, beta;     // [batch, tokens, heads]
  gyre_array ridge;       // [heads, keys]
  gyre_array x;           // solutions
  GYRE_CUDA_PTR(const int) reset;  // [batch, tokens]
  GYRE_CUDA_PTR(const float) H0;   // [batch, heads, keys, keys]; may be absent
  GYRE_CUDA_PTR(float) H;          // after the last token; may be absent
  // H before each chunk, [batch, heads, chunks, keys, keys], and how far a chunk decays what was before it,
  // [batch, heads, chunks].
  GYRE_CUDA_PTR(float) states;
  GYRE_CUDA_PTR(float) decays;
} gyre_mesa_args;

// y = beta k over rows of `keys`.
typedef struct gyre_mesa_key_args {
  long rows, keys;
  gyre_array k, beta, y;
} gyre_mesa_key_args;

// What both memories' gradients are together, rows of `keys`: with slope = values + covariance of the
// keys times beta, dk = beta slope + other, dbeta = <k, slope>; dg a sum; products = -z x.
typedef struct gyre_mesa_gradient_args {
  long rows, keys;
  gyre_array k, beta, x, z;
  gyre_array values, covariance, other;
  gyre_array dg_values, dg_covariance;  // [rows]
  gyre_array dk, dbeta, dg;
  GYRE_CUDA_PTR(float) products;        // [rows, keys]
} gyre_mesa_gradient_args;

// MARK: mesa_half.cu

#ifndef __CUDACC_RTC__
// Bytes of shared memory: a chunk's keys, decays and strengths, five vectors and scores of 16 warps.
static inline long gyre_mesa_half_shared(long keys) {
  return 4 * (64 * (keys + 3) + 16 * (5 * keys + 64));
}
#endif
typedef struct gyre_mesa_half_args {
  long batch, tokens, heads, keys, values;
  int steps;
  float epsilon;
  gyre_array q, k, v;            // [batch, tokens, heads, keys]; v: values
  gyre_array g, beta, ridge;     // [batch, tokens, heads]; [heads, keys]
  gyre_array H0, G0;
  gyre_array y, x;
  GYRE_CUDA_PTR(float) H;        // after the last token, [batch, heads, keys, keys]
  GYRE_CUDA_PTR(float) G;        // [batch, heads, keys, values]
} gyre_mesa_half_args;

// MARK: memory_order.cu

// `keys`: the choices of each token, memory + batch row * memories. `items`: pairs of a key and its
// position, to be sorted; absent where each lane takes its tokens in their own order.
typedef struct gyre_memory_order_args {
  long batch, tokens, memories, lanes;
  int count, depth;           // choices of a token; partitions until pieces are sorted by heap
  gyre_array p;               // [batch, tokens, memories]
  GYRE_CUDA_PTR(int) keys;    // [batch * tokens * count]
  GYRE_CUDA_PTR(int) items;   // [2] each
  GYRE_CUDA_PTR(int) places;  // of memory_sort: two lists of positions
  GYRE_CUDA_PTR(int) pieces;  // of memory_sort: two lists of pairs
  gyre_array taken;           // [batch, tokens, lanes]
  GYRE_CUDA_PTR(int) order;   // [batch, tokens, lanes]
  GYRE_CUDA_PTR(int) inverse;
} gyre_memory_order_args;

// MARK: selection.cu

typedef struct gyre_top_mask_args {
  long rows, columns, chosen;
  gyre_array x, y;  // y: float32
} gyre_top_mask_args;

#define GYRE_SELECTED_WIDTH 8  // tokens of a history in registers, the present one not counted
typedef struct gyre_selected_history_args {
  long batch, tokens, lanes;
  int width, first;                 // longer ones lie in `last` and write places from `first` on
  gyre_array mask;                  // [batch, tokens, lanes]
  GYRE_CUDA_PTR(const int) reset;
  GYRE_CUDA_PTR(int) out[GYRE_SELECTED_WIDTH];
  GYRE_CUDA_PTR(int) last;          // [batch, lanes, width - 1]
} gyre_selected_history_args;

typedef struct gyre_evolution_noise_args {
  long rows, count;
  unsigned long seed;
  unsigned epoch, leaf, first;
  int is_signed;
  float factor;
  int unused;
  GYRE_CUDA_PTR(const int) members;
  gyre_array y;
} gyre_evolution_noise_args;

// RandomChoice: number i of a stream below `below` gives `chosen`.
typedef struct gyre_choice_args {
  long count;
  unsigned long seed, stream;
  GYRE_CUDA_PTR(const long) step;  // mixed into the stream; may be absent
  unsigned below;
  float chosen, other;
  unsigned unused;
  gyre_array y;
} gyre_choice_args;

typedef struct gyre_low_rank_add_args {
  long rows, each, rank, inputs, outputs;
  gyre_array base, x, down, up, y;
  GYRE_CUDA_PTR(const int) tokens;  // in place of x
} gyre_low_rank_add_args;

// MARK: low_rank_noise.cu

// Noise of a parameter's factors, made of counters: see LowRankNoise.
typedef struct gyre_low_rank_noise {
  unsigned keys[20];  // of the generator's rounds: two each, from the seed
  unsigned epoch, leaf;
  unsigned down_first, up_first;  // numbers of B and of A begin here, multiples of 4
  float down, up;                 // what multiplies them
} gyre_low_rank_noise;

// y = base + s sum_l (x . B_l) A_l, or with tokens in place of x base[token] + s sum_l B_l[token] A_l; no
// base counts as 0. Rows of y: members_count * each.
typedef struct gyre_low_rank_noise_args {
  long members_count, each, inputs, outputs;
  int rank, unused;
  gyre_low_rank_noise noise;
  GYRE_CUDA_PTR(const int) members;  // negative: without noise
  GYRE_CUDA_PTR(const int) tokens;
  gyre_array x, base, y;
} gyre_low_rank_noise_args;

// y = x wᵀ + s (x . B) A in bfloat16, with 16 k rows a member and up to 128 inputs in 32s.
typedef struct gyre_member_linear_args {
  long rows, each, outputs;
  gyre_low_rank_noise noise;
  GYRE_CUDA_PTR(const int) members;
  gyre_array x, w, y;
} gyre_member_linear_args;

// The same for 16 k rows a member, inputs in eights and outputs in 32s, on sm_90a; x and W by boxes of 64 rows and
// 64 columns, W's rows turned. A pair of blocks of threads takes units: two tiles of GYRE_PRODUCT_ROWS rows with one of `parts`
// parts of the `tiles` of columns.
enum { GYRE_PRODUCT_ROWS = 128, GYRE_PRODUCT_THREADS = 384 };
#define GYRE_PRODUCT_STAGES(columns) ((columns) == 256 ? 4 : (columns) == 128 ? 6 : 8)
typedef struct gyre_member_product_args {
  gyre_tensor_map x, w;
  long rows, each, inputs, outputs;
  int tiles, parts, units, unused;
  gyre_low_rank_noise noise;
  GYRE_CUDA_PTR(const int) members;
  GYRE_CUDA_PTR(unsigned short) y;
  long padding[3];
} gyre_member_product_args;
#ifndef __CUDACC_RTC__
// Its tiles, numbers of B and A, barriers, room to begin at a multiple of 1,024.
static inline int gyre_member_product_shared(int columns) {
  const int stages = GYRE_PRODUCT_STAGES(columns);
  return 1024 + stages * ((GYRE_PRODUCT_ROWS + columns) * 128 + 16) + 8 * 1024 + 8 * columns * 4;
}
#endif

// Parameters as members have them: out [members, count] = value + s noise, float32.
#define GYRE_MEMBER_PARAMETERS 48
typedef struct gyre_member_parameter {
  GYRE_CUDA_PTR(const float) value;
  GYRE_CUDA_PTR(float) out;
  long count;
  int columns;  // of a matrix with noise of low rank; 0: every element has a number of its own
  unsigned leaf;
} gyre_member_parameter;
typedef struct gyre_member_parameters_args {
  long members_count;
  int parameters, rank;
  gyre_low_rank_noise noise;
  GYRE_CUDA_PTR(const int) members;
  float scale;  // of numbers of single elements
  int unused;
  gyre_member_parameter parameter[GYRE_MEMBER_PARAMETERS];
} gyre_member_parameters_args;

#define GYRE_ROTARY_RATES 128
typedef struct gyre_rotary_rates_args {
  long rows, tokens, heads, size, offset;
  int pairs, interleaved, inverts;
  int first, count;  // pairs of this launch; the first also copies the channels that do not turn
  int unused;
  double magnitude;
  gyre_array x, y;
  double rates[GYRE_ROTARY_RATES];  // of its pairs
} gyre_rotary_rates_args;
