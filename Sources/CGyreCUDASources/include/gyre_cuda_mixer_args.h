// Arguments and launch sizes of the chunkwise kernels of matrix states and of the diagonal scan:
// cuda/linear_attention.cu, cuda/delta_rule.cu, cuda/diagonal_scan.cu. cuda/LAUNCH.md says which
// kernel runs when; cuda/chunk_common.cuh is the device's view of the same structure.
#pragma once
#include "gyre_cuda_args.h"

#ifdef __cplusplus
extern "C" {
#endif

/// What divides the outputs of linear attention with gates of kinds 0 to 2: y = o / d, a = s z·q,
/// z ← D z + w k. Null pointers where allowed. KP is gyre_cuda_mixer_size's of K.
struct gyre_cuda_normalizer_args {
  const void *input_gate;       // ĩ [B, T, H], w = e^(ĩ − m), or null: w = 1
  const float *initial_max;     // [B, H] or null: 0
  float *final_max;             // [B, H] or null
  float *stabilizers;           // workspace [B·H, N + 1, 2], with input gates; until the gradient
  float *row_sums;              // workspace [B·H, N, 2, 64]; until the gradient
  float *key_sums;              // workspace [B·H, N, KP]; until the walk
  const float *initial_vector;  // [B, H, K] or null: zeros
  float *final_vector;          // [B, H, K] or null
  float *vectors;               // workspace [B·H, N, KP]; null without gradients
  float *amounts;               // workspace [B, T, H]; null without gradients
  void *dn;                     // element [B, T, H, V], takes the place of dy after normalize_back
  float *d_amounts;             // workspace [B, T, H]; null in the forward pass
  float *query_sums;            // workspace [B·H, N, KP]
  float *vector_gradients;      // workspace [B·H, N, KP]
  const float *d_final_vector;  // [B, H, K] or null: zeros
  float *d_initial_vector;      // [B, H, K] or null
  float *d_input;               // [B, T, H] or null
  int input_is_float;           // the input gate's type: 1 float32, 0 bf16
  int divisor;                  // 0: none, 1: a + ε, 2: max(|a|, floor) + ε, 3: max(|a|, e^−m) + ε
  float floor, epsilon;
};

/// B batch, T tokens, H heads, Hk key heads, K and V sizes of keys and values (multiples of 8), N
/// chunks of 64 tokens. "element": bf16, or float32 in the kernels named `_float_`. Null pointers
/// where allowed.
struct gyre_cuda_mixer_args {
  const void *q, *k;       // element [B, T, Hk, K]
  const void *v;           // element [B, T, H, V]
  const void *a, *b;       // element [B, T, H, K], erase and write vectors, generalised rule only
  const void *gate;        // log decay ≤ 0, −∞ allowed; shape by gate_kind
  const void *beta;        // [B, T, H], delta rule only
  const int *reset;        // [B, T] or null; nonzero: the state is zero before the token
  const float *initial;    // [B, H, K, V] or null: zeros
  void *y;                 // element [B, T, H, V]
  float *final_state;      // [B, H, K, V] or null
  unsigned char *records;  // workspace, B·H·N × gyre_cuda_mixer_record_bytes, 128-byte aligned
  unsigned char *extras;   // workspace, B·H·N × gyre_cuda_mixer_extra_bytes; null without gradients
  void *states;            // bf16, B·H·N × gyre_cuda_mixer_state_bytes; null without gradients
  void *written;           // element [B, T, H, V], the delta rule only; null without gradients
  void *state_gradients;   // the same size
  const void *dy;          // element [B, T, H, V]
  const float *d_final;    // [B, H, K, V] or null: zeros
  void *dq, *dk;  // element [B, T, H, K], of each value head; sum over the heads of a group
  void *dv;       // element [B, T, H, V]; of the delta rule from walk_back, and read by gradient
  void *da, *db;  // element [B, T, H, K], generalised rule only
  void *d_gate;   // [B, T, H, K] in the gate's type; float [B, T, H] for gate kinds 1, 2; or null
  float *d_beta;  // [B, T, H] or null
  float *d_initial;  // [B, H, K, V] or null
  float *norms;      // [B·H, N, 2, 64] or null: 1 / length of the rows of q and k; by prepare, for
                     // gradient
  int *mild;         // [B·H, N] or null: written by the _mild kernels, read by the others
  int batch, tokens, heads, key_heads, keys, values;
  int chunks;         // N = ⌈T / 64⌉
  int gate_kind;      // 0: none, 1: [H], 2: [B, T, H], 3: [B, T, H, K]
  int gate_is_float;  // the gate's type: 1 float32, 0 bf16
  int beta_is_float;  // likewise
  float scale;        // multiplies the outputs
  int normalize;      // 1: q and k are divided by √(Σ² + 1e-6); dq, dk are those of the results
  struct gyre_cuda_normalizer_args n;
};

/// cuda/linear_attention_tiles.cu: boxes of 64 rows and 64 channels of a head of q, k and v in bf16. Of `m` it
/// reads the gates, initial and final values, sizes and what divides, and no workspace.
struct gyre_cuda_linear_tile_args {
  gyre_tensor_map q, k, v;
  struct gyre_cuda_mixer_args m;
  float *segment_states;  // workspace of gyre_cuda_linear_tiles_between bytes, 16-byte aligned; null for one segment
  float *segment_gates;   // workspace [B·H, segments, 2]; likewise
  int segments;           // none of them empty
  int segment_chunks;     // of each but the last
};

/// Walks of linear attention in segments, without what divides the outputs.
struct gyre_cuda_segment_args {
  struct gyre_cuda_mixer_args m;
  float *states;  // workspace of gyre_cuda_mixer_segments_between bytes, 16-byte aligned; null for one segment
  float *decays;  // workspace [B·H, segments − 1, KP]; likewise
  int segments;   // none of them empty
  int steps;      // chunks of each but the last
};

/// cuda/delta_rule_tiles.cu (cuda/delta_tiles.cuh): boxes of 64 rows of records as they lie, [record,
/// K̃ | W | Q̄ (| B̂), K / 64, 64], and of 64 channels of a head of q, k and `rows`: v, or dy in the walk back.
struct gyre_cuda_delta_tile_args {
  gyre_tensor_map tiles, q, k, rows;
  struct gyre_cuda_mixer_args m;
  float *segment_states;      // workspace of …_segment_states bytes, 16-byte aligned; null for one segment
  void *segment_transitions;  // workspace of …_segment_transitions bytes; likewise
  int segments;               // none of them empty
  int segment_chunks;         // of each but the last
};

/// cuda/delta_rule_prepare_tiles.cu: boxes of 64 rows and 64 channels of a head of q and k in bf16, and of
/// records as they lie.
struct gyre_cuda_delta_prepare_args {
  gyre_tensor_map q, k, tiles;
  struct gyre_cuda_mixer_args m;
  long unused[3];  // to a multiple of 64 bytes
};

struct gyre_cuda_scan_args {
  const void *decay;     // [B, T, D], D even: a, or ln a ≤ 0; type by the kernel's name
  const void *input;     // element [B, T, D]
  const float *initial;  // [B, D] or null
  const int *reset;      // [B, T] or null
  void *h;               // element [B, T, D]: written forward, read backward
  float *final_state;    // [B, D] or null
  const void *dh;        // element [B, T, D]
  const float *d_final;  // [B, D] or null
  void *da, *du;         // gradients of decay and input, in their types
  float *d_initial;      // [B, D] or null
  int batch, tokens, channels;
  int decay_is_log;
  int decay_is_float;  // not read
};

/// cuda/delta_rule_gradient_tiles.cu: boxes of 64 rows and 64 channels of a head in bf16, of a key head in q and k.
/// All else is in `m`, as for the other gradients.
struct gyre_cuda_delta_gradient_args {
  gyre_tensor_map q, k, dy, dv, written, dq, dk;
  struct gyre_cuda_mixer_args m;
  long unused[3];  // to a multiple of 64 bytes
};

#ifndef __cplusplus
// Kernels' structures with maps are aligned to 64 bytes, so the driver reads whole ones.
#define GYRE_WHOLE(name) _Static_assert(sizeof(struct name) % 64 == 0, "a multiple of 64 bytes")
GYRE_WHOLE(gyre_cuda_linear_tile_args);
GYRE_WHOLE(gyre_cuda_delta_tile_args);
GYRE_WHOLE(gyre_cuda_delta_prepare_args);
GYRE_WHOLE(gyre_cuda_delta_gradient_args);
#undef GYRE_WHOLE
#endif

enum gyre_cuda_mixer_rule {
  GYRE_CUDA_MIXER_LINEAR = 0,
  GYRE_CUDA_MIXER_BETA = 1,
  GYRE_CUDA_MIXER_GENERAL = 2
};

/// The kernels' size for K or V: rounded up to 64 or 128; 0: no kernel.
static inline int gyre_cuda_mixer_size(int n) { return n % 8 || n > 128 ? 0 : n <= 64 ? 64 : 128; }
/// The same for K of linear attention with gates of kinds 0 to 2, which takes V of any multiple of 8.
static inline int gyre_cuda_mixer_wide_size(int n) {
  return n % 8 || n > 256 ? 0 : n <= 64 ? 64 : n <= 128 ? 128 : 256;
}

/// Bytes a chunk and head of `records`; `size` is gyre_cuda_mixer_size's of K, here and below.
static inline long gyre_cuda_mixer_record_bytes(enum gyre_cuda_mixer_rule rule, int size) {
  const int tiles = rule == GYRE_CUDA_MIXER_LINEAR ? 2 : rule == GYRE_CUDA_MIXER_BETA ? 3 : 4;
  return (4096L + tiles * 64L * size) * 2 + size * 4L + (rule == GYRE_CUDA_MIXER_BETA ? 512 : 0);
}
static inline long gyre_cuda_mixer_extra_bytes(enum gyre_cuda_mixer_rule rule) {
  return rule == GYRE_CUDA_MIXER_LINEAR ? 0 : rule == GYRE_CUDA_MIXER_BETA ? 8192 : 24576;
}
static inline long gyre_cuda_mixer_state_bytes(int values, int size) {
  return (values + 15) / 16 * 16L * size * 2;
}

// Dynamic shared memory.
static inline int gyre_cuda_mixer_prepare_shared(enum gyre_cuda_mixer_rule rule, int size,
                                                 int is_scalar) {
  const int tiles = 64 * size;
  if (is_scalar && rule == GYRE_CUDA_MIXER_BETA)
    return (2 * 4096 + 2 * tiles + 2048 + 640 + 256) * 2;
  int n = 4096 + (rule == GYRE_CUDA_MIXER_LINEAR ? 2 : rule == GYRE_CUDA_MIXER_BETA ? 3 : 4) * tiles;
  n += rule == GYRE_CUDA_MIXER_LINEAR ? 4096 : rule * tiles + rule * 8192;
  return (n + 2048 + 640 + 256) * 2;
}
/// `has_norm`: with what divides the outputs.
static inline int gyre_cuda_mixer_walk_shared(enum gyre_cuda_mixer_rule rule, int size, int is_back,
                                              int is_team, int has_norm, int is_sm90) {
  const int values = is_team ? 32 : 64;
  const int is_beta = rule == GYRE_CUDA_MIXER_BETA;
  const long copied = gyre_cuda_mixer_record_bytes(rule, size) - (is_beta ? 512 : 0) -
                      (is_back && !is_beta ? (4096L + 64L * size) * 2 : 0);
  const long sums = has_norm ? (is_back ? 0 : 512) + size * 4L : 0;
  const long stage =
      (copied + 1023) / 1024 * 1024 + 64L * values * 2 + (sums + 1023) / 1024 * 1024;
  const long fit = ((is_sm90 ? 225 : 160) * 1024L - 1024) / stage;
  const long bytes = (fit > 4 ? 4 : fit < 2 ? 2 : fit) * stage + 1024;
  return (int)(bytes + (is_team ? 2 * (16L * size + 1024) * 2 : 0));
}
/// Of walks of linear attention in segments: `_states` or `_segments`.
static inline int gyre_cuda_mixer_segments_shared(int size, int is_back, int is_states, int is_sm90) {
  const long copied = (is_back || is_states ? 0 : 8192 + 128L * size) + 132L * size;
  const long stage = (copied + 1023) / 1024 * 1024 + 128L * 64, limit = (is_sm90 ? 225 : 160) * 1024L;
  const long half = (limit / 2 - 1024) / stage, fit = half >= 2 ? half : (limit - 1024) / stage;
  return (int)((fit > 4 ? 4 : fit < 2 ? 2 : fit) * stage + 1024);
}
/// What segments leave for the second launch.
static inline long gyre_cuda_mixer_segments_between(int size, int values, long rows, int segments) {
  return rows * ((values + 15) / 16) * (segments - 1) * size * 64;
}
/// `size` is 64 or 128; `has_outputs` 0: of the kernel named `_states`.
static inline int gyre_cuda_linear_tiles_shared(int size, int has_outputs) {
  const int panels = size / 64, stages = size == 64 ? 5 : 4, slots = !has_outputs ? 0 : size == 64 ? 3 : 2;
  const int stage = (panels * (has_outputs ? 2 : 1) + 1) * 8192 + 2048;
  const int states = slots * (panels * 9216 + 16), results = has_outputs ? 2 * 8192 : 0;
  return 1024 + stages * (stage + 16) + 1024 + states + results;
}
static inline int gyre_cuda_linear_tiles_threads(int has_outputs) { return has_outputs ? 512 : 192; }
/// What segments leave for the second pass; `blocks` of 64 value columns in all heads.
static inline long gyre_cuda_linear_tiles_between(int size, long blocks, int segments) {
  return blocks * (segments - 1) * (size / 64) * 4352 * 4;
}
/// Of the delta rules' forward walk by tiles. `size` is 64 or 128, `groups` a block's value columns
/// by 64; `has_outputs` 0: of a kernel named `_states`.
static inline int gyre_cuda_delta_tiles_shared(enum gyre_cuda_mixer_rule rule, int size, int groups, int has_outputs) {
  const int tiles = 2 + (rule == GYRE_CUDA_MIXER_GENERAL) + has_outputs;
  const int stage = tiles * 128 * size + (groups + has_outputs) * 8192 + 1024;
  const int fit = (226 * 1024 - 512) / stage, stages = fit > 4 ? 4 : fit;
  return 1024 + stages * (stage + 5 * 16);
}
static inline int gyre_cuda_delta_tiles_threads(int groups) { return groups == 2 ? 384 : 160; }
/// Of the walk back.
static inline int gyre_cuda_delta_tiles_back_shared(int size) {
  const int tiles = size == 64 ? 7 : 10, nears = 3, near = 16384 + (size * 4 + 512 + 1023) / 1024 * 1024;
  return 1024 + tiles * 128 * size + nears * near + (tiles + nears) * 16;
}
static inline int gyre_cuda_delta_tiles_back_threads(void) { return 160; }
static inline int gyre_cuda_delta_tiles_fold_shared(int size) { return 4 * size / 64 * 128 * size + 1024 + 32; }
/// What segments leave: what they add to a state, and what becomes of one that enters them.
static inline long gyre_cuda_delta_tiles_segment_states(int size, int values, long rows, int segments) {
  return rows * (segments - 1) * ((values + 63) / 64) * 256L * size;
}
static inline long gyre_cuda_delta_tiles_segment_transitions(int size, long rows, int segments) {
  return rows * (segments - 1) * (size / 64) * 256L * size;
}
/// `size` is 64 or 128.
static inline int gyre_cuda_delta_prepare_shared(int size) {
  return 1024 + 128 * size + 16384 + 4096 + 1280 + 4 * 256 + 8;
}
static inline int gyre_cuda_mixer_mild_prepare_shared(enum gyre_cuda_mixer_rule rule, int size) {
  const int tiles = (rule == GYRE_CUDA_MIXER_LINEAR ? 2 : rule == GYRE_CUDA_MIXER_BETA ? 3 : 4) * 64 * size;
  return (tiles + (2 * rule + 1) * 4096 + 10 * size + 128) * 2;
}
/// normalize_back's.
static inline int gyre_cuda_mixer_normalize_shared(void) { return (64 + 1024) * 4; }
/// Keys and values of up to 64.
static inline int gyre_cuda_mixer_mild_gradient_shared(enum gyre_cuda_mixer_rule rule) {
  const int tiles = rule == GYRE_CUDA_MIXER_LINEAR ? 8 : rule == GYRE_CUDA_MIXER_BETA ? 9 : 13;
  return (tiles * 4096 + 2944) * 2;
}
/// Linear attention with gates of kinds 0 to 2, any size.
static inline int gyre_cuda_mixer_linear_gradient_shared(void) {
  return (8 * 4096 + 640 + 1280 + 128 + 256) * 2;
}
/// `values` is gyre_cuda_mixer_size's of V.
static inline int gyre_cuda_mixer_gradient_shared(enum gyre_cuda_mixer_rule rule, int size,
                                                  int values, int is_scalar) {
  const int tile = 64 * size, value_tile = 64 * values;
  if (is_scalar) return (3 * value_tile + 2 * 4096 + 2 * tile + 4480) * 2;
  const int first = rule == GYRE_CUDA_MIXER_LINEAR    ? 4096 + tile
                    : rule == GYRE_CUDA_MIXER_GENERAL ? 4 * 4096 + 3 * tile
                                                      : 0;
  const int second = rule == GYRE_CUDA_MIXER_LINEAR ? 4096
                     : rule == GYRE_CUDA_MIXER_BETA ? value_tile + 2 * 4096
                                                    : 2 * value_tile + 6 * 4096;
  return (2 * value_tile + 2 * size * values + (first > second ? first : second) + 2 * 4096 +
          8 * 1280 + 4480) *
         2;
}
/// Sizes are 64 or 128.
static inline int gyre_cuda_delta_gradient_shared(int size, int values) {
  const int keys = size / 64, panels = 2 * keys + 3 * (values / 64) + (size + values == 128 ? 1 : 2);
  return 1024 + panels * 8192 + 2584 + keys * 4 * 520;
}
static inline int gyre_cuda_delta_gradient_threads(int size) { return size * 2; }

#ifdef __cplusplus
}
#endif
