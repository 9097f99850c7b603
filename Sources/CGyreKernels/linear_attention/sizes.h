// Sizes that every level shares, so that saved states mean the same to all.
#pragma once
#include "../include/ck_linear_attention.h"

#define LA_TILE 64   // value columns of a state tile
#define LA_CHUNK 64  // most tokens of a chunk

static inline long la_round16(long n) { return (n + 15) / 16 * 16; }

// Small states make the products within a chunk the larger part of the work: shorter chunks.
static inline long la_chunk(const struct ck_linear_attention_problem *p) {
  const bool small = p->decay != CK_LINEAR_ATTENTION_DECAY_VECTOR && p->key_width <= 64 &&
                     p->value_width <= 64;
  if (p->form != CK_LINEAR_ATTENTION_CHUNKWISE || p->chunk <= 0) return small ? 32 : LA_CHUNK;
  return p->chunk > LA_CHUNK ? LA_CHUNK : p->chunk;
}
