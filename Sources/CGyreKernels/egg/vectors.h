// Vectors of 64 bytes on every level, and the layout that all of EGG's numbers have.
//
// A tile is 64 members: 4 vectors of 16 lanes. A row of numbers of a tile is kept in quads: 4 numbers of
// 16 members in one vector, member by member. So everything but products runs down the lanes and knows no
// layout, products take 4 numbers of a member from each 32-bit lane, and weights are read as they are.
// Perturbed, vectors 0 and 1 are the + and - members of the tile's first 16 pairs, 2 and 3 of the others.
#pragma once
#include "ck_egg.h"

enum { VECTORS = 4, LANES = 16, TILE = VECTORS * LANES, GROUPS = 2, ROWS = 16, VOCABULARY = 256 };

typedef int8_t bytes __attribute__((vector_size(64), may_alias));
typedef int16_t halves __attribute__((vector_size(64), may_alias));
typedef int16_t wide_bytes __attribute__((vector_size(128)));
typedef int32_t words __attribute__((vector_size(64), may_alias));
typedef uint32_t unsigned_words __attribute__((vector_size(64), may_alias));
typedef uint64_t doubles __attribute__((vector_size(64), may_alias));
typedef float floats __attribute__((vector_size(64)));
typedef int8_t lane_bytes __attribute__((vector_size(16), may_alias));

#define EGG_INLINE static inline __attribute__((always_inline))
