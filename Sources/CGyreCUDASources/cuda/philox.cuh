// Philox 4x32-10: counters to random words.
#pragma once
#include "prelude.cuh"

// One instruction gives both halves; as two products it is two slow ones.
GYRE_DEVICE void multiply_whole(unsigned a, unsigned b, unsigned &high, unsigned &low) {
  unsigned long long p;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(p) : "r"(a), "r"(b));
  high = (unsigned)(p >> 32), low = (unsigned)p;
}

GYRE_DEVICE uint4 philox(uint4 c, unsigned k0, unsigned k1) {
#pragma unroll
  for (int round = 0; round < 10; round++) {
    unsigned high0, low0, high1, low1;
    multiply_whole(c.x, 0xD2511F53u, high0, low0);
    multiply_whole(c.z, 0xCD9E8D57u, high1, low1);
    c = make_uint4(high1 ^ c.y ^ k0, low1, high0 ^ c.w ^ k1, low0);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return c;
}
