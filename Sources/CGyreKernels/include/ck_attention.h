// Causal softmax attention with grouped heads, sliding window, packed documents and log forget gates.
//
//     p(i) = Tk - Tq + i                                    position of query i among the keys
//     s(i, j) = scale q(i)·k(j) + sum of g(l), j < l <= p(i)         for lo(i) <= j <= p(i)
//     y(i) = sum over j of softmax_j(s(i, j)) v(j)
//
// lo(i) is the later of p(i) - window + 1 and the start of p(i)'s document. Query head h reads key
// head h / (Hq / Hkv). The forget gates are those of Lin et al., "Forgetting Transformer", 2025.
// Sizes: B batch, Tq queries, Tk >= Tq keys (the first Tk - Tq are a cache), K key, V value size.
#pragma once
#include "ck_common.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { CK_ATTENTION_STORED = 256 };  // the largest heads that may be stored in bfloat16

struct ck_attention_shape {
  long batch, query_tokens, key_tokens;
  long query_heads, key_heads;     // Hq, a multiple of Hkv
  long key_size, value_size;
  long window;                     // tokens seen, the current one included; 0 = all
  float scale;
  bool bf16;                       // forward and backward may round operands of products to bfloat16
                                   // (levels with such instructions do); sums are float32
  // q, k, v, y, dy, dq, dk and dv are bfloat16, the pointers' type notwithstanding; g, logsumexp and dg are
  // float32. Only with bf16, without g and tile sizes, for K and V up to CK_ATTENTION_STORED, at levels avx512bf16
  // and amx; not for decode.
  bool bf16_stored;
  // Tile sizes; 0 = best. (1, ·) is the recurrent form, (Tq, Tk) the materialised parallel form;
  // nothing else stores Tq x Tk numbers.
  long query_tile, key_tile;
  const float *q;                  // [B, Tq, Hq, K]
  const float *k;                  // [B, Tk, Hkv, K]
  const float *v;                  // [B, Tk, Hkv, V]
  const float *g;                  // log forget gates <= 0, [B, Tk, Hq], or NULL
  const int32_t *reset;            // [B, Tk], nonzero: a document starts at this key; or NULL
};

struct ck_attention_forward_args {
  struct ck_attention_shape shape;
  float *y;                        // [B, Tq, Hq, V]
  float *logsumexp;                // log of the sum of exp(s(i, ·)), [B, Tq, Hq]; NULL: not wanted
};

struct ck_attention_backward_args {
  struct ck_attention_shape shape;
  const float *y, *logsumexp;      // as forward left them
  const float *dy;                 // [B, Tq, Hq, V]
  float *dq, *dk, *dv;             // as q, k, v
  float *dg;                       // [B, Tk, Hq]; NULL: not wanted
};

/// One new token for every sequence against its cache. The slots of a cache may be in any order, so
/// a ring needs no unrolling.
struct ck_attention_decode_args {
  long batch, capacity;            // slots per sequence
  long query_heads, key_heads, key_size, value_size;
  float scale;
  const float *q;                  // [B, Hq, K]
  float *k, *v;                    // caches [B, capacity, Hkv, K], [B, capacity, Hkv, V]
  const float *new_k, *new_v;      // written to slot `slot[b]` first: [B, Hkv, K], [B, Hkv, V]; or
                                   // both NULL where the caches hold them already
  const int32_t *slot;             // [B]: slot of the new token
  const int32_t *length;           // [B]: slots in use, the new one included (1...capacity)
  // With forget gates: g of the new token [B, Hq], and each slot's sum of gates since it was
  // written, [B, Hq, capacity], brought up to date here. Both NULL without.
  const float *g;
  float *decay;
  float *y;                        // [B, Hq, V]
};

struct ck_attention_table {
  void (*forward)(const struct ck_attention_forward_args *);
  void (*backward)(const struct ck_attention_backward_args *);
  void (*decode)(const struct ck_attention_decode_args *);
};

/// Fills the best kernels that `level` contains; false where this build or processor lacks them.
bool ck_attention_table_for(enum ck_level level, struct ck_attention_table *out);

#ifdef __cplusplus
}
#endif
