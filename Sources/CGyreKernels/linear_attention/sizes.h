// Sizes that every level shares, so that saved states mean the same to all.
#pragma once
#include "../include/ck_linear_attention.h"

#define LA_TILE 64   // value columns of a state tile
#define LA_CHUNK 64  // most tokens of a chunk

static inline long la_round16(long n) { return (n + 15) / 16 * 16; }

static inline long la_chunk(const struct ck_linear_attention_problem *p) {
  const bool whole = p->form != CK_LINEAR_ATTENTION_CHUNKWISE || p->chunk <= 0;
  return whole || p->chunk > LA_CHUNK ? LA_CHUNK : p->chunk;
}
