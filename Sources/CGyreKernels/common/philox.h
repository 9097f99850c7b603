// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011) for
// many counters at a time.
#pragma once
#include <stdint.h>

enum { CK_PHILOX_BLOCKS = 16 };

/// Four words each of the counters (first + i, c1, c2, c3) under the key `seed`, word after word of a
/// counter.
static inline void ck_philox(uint32_t first, uint32_t counter1, uint32_t counter2, uint32_t counter3,
                             uint64_t seed, uint32_t out[CK_PHILOX_BLOCKS * 4]) {
  uint32_t c0[CK_PHILOX_BLOCKS], c1[CK_PHILOX_BLOCKS], c2[CK_PHILOX_BLOCKS], c3[CK_PHILOX_BLOCKS];
  for (int i = 0; i < CK_PHILOX_BLOCKS; i++) {
    c0[i] = first + (uint32_t)i;
    c1[i] = counter1;
    c2[i] = counter2;
    c3[i] = counter3;
  }
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    for (int i = 0; i < CK_PHILOX_BLOCKS; i++) {
      const uint64_t a = (uint64_t)c0[i] * 0xD2511F53u, b = (uint64_t)c2[i] * 0xCD9E8D57u;
      c0[i] = (uint32_t)(b >> 32) ^ c1[i] ^ k0;
      c1[i] = (uint32_t)b;
      c2[i] = (uint32_t)(a >> 32) ^ c3[i] ^ k1;
      c3[i] = (uint32_t)a;
    }
  }
  for (int i = 0; i < CK_PHILOX_BLOCKS; i++) {
    out[4 * i] = c0[i];
    out[4 * i + 1] = c1[i];
    out[4 * i + 2] = c2[i];
    out[4 * i + 3] = c3[i];
  }
}
