// Numbers of a population: sums of the four bytes of Philox words, less 510.
#pragma once
#include "gyre_cuda_engine_args.h"
#include "philox.cuh"

// The numbers of one member and parameter: Philox (philox.cuh) with counter (i, pair, leaf, epoch), what does not
// depend on i taken out of the first two rounds, and the rounds' keys read from the launch's constants.
struct Numbers {
  const unsigned *keys;
  unsigned z, x, high, low;
  GYRE_DEVICE Numbers(const gyre_low_rank_noise &n, unsigned leaf, int member) : keys(n.keys) {
    const unsigned first = __umulhi(leaf, 0xCD9E8D57u) ^ ((unsigned)member >> 1) ^ keys[0];
    z = n.epoch ^ keys[1];
    x = leaf * 0xCD9E8D57u ^ keys[2];
    high = __umulhi(first, 0xD2511F53u) ^ keys[3];
    low = first * 0xD2511F53u;
  }

  GYRE_DEVICE uint4 words(unsigned i) const {
    unsigned high0, low0, high1, low1;
    multiply_whole(i, 0xD2511F53u, high0, low0);
    multiply_whole(high0 ^ z, 0xCD9E8D57u, high1, low1);
    uint4 c = make_uint4(high1 ^ x, low1, high ^ low0, low);
#pragma unroll
    for (int round = 2; round < 10; round++) {
      multiply_whole(c.x, 0xD2511F53u, high0, low0);
      multiply_whole(c.z, 0xCD9E8D57u, high1, low1);
      c = make_uint4(high1 ^ c.y ^ keys[2 * round], low1, high0 ^ c.w ^ keys[2 * round + 1], low0);
    }
    return c;
  }

  // A word's number. The sum lands in the low bits of 2^23 as a float: no conversion.
  static GYRE_DEVICE float of(unsigned word) {
    return __uint_as_float(__dp4a(word, 0x01010101u, 0x4b000000u)) - 8389118.f;
  }
  // Numbers 4 i to 4 i + 3.
  GYRE_DEVICE void four(unsigned i, float *to) const {
    const uint4 v = words(i);
    to[0] = of(v.x), to[1] = of(v.y), to[2] = of(v.z), to[3] = of(v.w);
  }
  GYRE_DEVICE float one(unsigned i) const {
    const uint4 v = words(i >> 2);
    return of((i & 2) ? (i & 1) ? v.w : v.z : (i & 1) ? v.y : v.x);
  }
};

constexpr int PAIR = 2;

// Two neighbours in the list of members.
struct Pair {
  int member[PAIR];
  bool shares;
  GYRE_DEVICE Pair(const int *members, long first, long count) {
#pragma unroll
    for (int m = 0; m < PAIR; m++) member[m] = first + m < count ? members[first + m] : -1;
    shares = member[0] >= 0 && member[1] >= 0 && member[0] >> 1 == member[1] >> 1;
  }
  // Also for places known at run time only.
  GYRE_DEVICE int at(int m) const { return m ? member[1] : member[0]; }
  GYRE_DEVICE float sign(int m) const { return at(m) < 0 ? 0.f : at(m) & 1 ? -1.f : 1.f; }
};
