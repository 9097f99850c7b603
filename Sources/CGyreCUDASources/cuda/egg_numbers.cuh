// EGG's whole numbers in packed form: sums and quotients that are clipped, norms, scores.
#pragma once
#include "egg.cuh"

constexpr int ROWS = 2;  // members of a thread
constexpr u32 LOWEST = 0xff81ff81u, HIGHEST = 0x007f007fu;  // -127 and 127, twice

// MARK: packed numbers

GYRE_DEVICE u32 bytes_of(u32 a, u32 b, u32 which) { return __byte_perm(a, b, which); }
/// Bytes with their signs in place: a pair of 16-bit numbers.
GYRE_DEVICE u32 low_pair(u32 x) {
  u32 r;
  asm("prmt.b32 %0, %1, 0, 0x9180;" : "=r"(r) : "r"(x));
  return r;
}
GYRE_DEVICE u32 high_pair(u32 x) {
  u32 r;
  asm("prmt.b32 %0, %1, 0, 0xb3a2;" : "=r"(r) : "r"(x));
  return r;
}
GYRE_DEVICE u32 pair_of(u32 x, int half) { return half ? high_pair(x) : low_pair(x); }
template <int I>
GYRE_DEVICE int signed_byte(u32 x) {
  int r;
  if (I == 0) asm("prmt.b32 %0, %1, 0, 0x8880;" : "=r"(r) : "r"(x));
  else if (I == 1) asm("prmt.b32 %0, %1, 0, 0x9991;" : "=r"(r) : "r"(x));
  else if (I == 2) asm("prmt.b32 %0, %1, 0, 0xaaa2;" : "=r"(r) : "r"(x));
  else asm("prmt.b32 %0, %1, 0, 0xbbb3;" : "=r"(r) : "r"(x));
  return r;
}
GYRE_DEVICE u32 clipped(u32 x) { return __vmaxs2(__vmins2(x, HIGHEST), LOWEST); }
/// clip(a + b), both far from the ends of 16 bits.
GYRE_DEVICE u32 clipped_sum(u32 a, u32 b) { return __vmaxs2(__viaddmin_s16x2(a, b, HIGHEST), LOWEST); }
/// Four bytes of two pairs.
GYRE_DEVICE u32 packed(u32 low, u32 high) { return bytes_of(low, high, 0x6420); }
GYRE_DEVICE int dot(u32 a, u32 b, int sum) { return __dp4a((int)a, (int)b, sum); }
GYRE_DEVICE int dot(const uint4 &a, const uint4 &b, int sum) {
  return dot(a.x, b.x, dot(a.y, b.y, dot(a.z, b.z, dot(a.w, b.w, sum))));
}
GYRE_DEVICE int magnitude(u32 x, int sum) { return sum + (int)__vsadu4(x ^ 0x80808080u, 0x80808080u); }
GYRE_DEVICE int over_quad(int x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

__device__ constexpr int log_of_power(int n) { return n > 1 ? 1 + log_of_power(n / 2) : 0; }

/// floor(a / d) and floor(b / d) as a pair, d = 16 floor(sqrt(INPUTS)); far values may come out clipped.
template <int INPUTS>
GYRE_DEVICE u32 divided(int a, int b) {
  constexpr int D = 16 * root_of(INPUTS);
  constexpr bool is_power = (D & (D - 1)) == 0;
  // |sum| is below 127^2 INPUTS, and half of it more with the perturbation's shift of at least 8.
  constexpr bool fits = SHIFT >= 8 && (long)INPUTS * 16129 / D * 3 / 2 < 32000;
  if (is_power && D == 256 && fits) return bytes_of((u32)a, (u32)b, 0x6521);
  if (is_power) {
    a >>= log_of_power(D), b >>= log_of_power(D);
  } else {
    a = a >= 0 ? a / D : -((D - 1 - a) / D);
    b = b >= 0 ? b / D : -((D - 1 - b) / D);
  }
  if (!fits) a = min(max(a, -127), 127), b = min(max(b, -127), 127);
  return bytes_of((u32)a, (u32)b, 0x5410);
}

struct pairs {
  u32 row[ROWS][8];  // 16 features, two a word
};

/// clip(floor((sum + (z A >> shift)) / d)) of a chunk: column 8 j + 2 q + e is feature 2 j + e of the thread.
template <int INPUTS>
GYRE_DEVICE pairs scaled(const int *sums, const uint4 &a, const int (&z)[ROWS]) {
  pairs out;
#pragma unroll
  for (int j = 0; j < 8; j++) {
    const u32 word = word_of(a, j / 2);
    const int first = j % 2 ? signed_byte<2>(word) : signed_byte<0>(word);
    const int second = j % 2 ? signed_byte<3>(word) : signed_byte<1>(word);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const int s0 = sums[4 * j + 2 * r] + ((z[r] * first) >> SHIFT);
      const int s1 = sums[4 * j + 2 * r + 1] + ((z[r] * second) >> SHIFT);
      out.row[r][j] = clipped(divided<INPUTS>(s0, s1));
    }
  }
  return out;
}
GYRE_DEVICE uint4 packed(const u32 (&x)[8]) {
  return make_uint4(packed(x[0], x[1]), packed(x[2], x[3]), packed(x[4], x[5]), packed(x[6], x[7]));
}

// MARK: norms

/// -2, or -1 where x w is 0: what the published code gives where the mean is 0.
GYRE_DEVICE u32 without_mean(u32 x, u32 w) {
  x |= (x & 0x7f7f7f7fu) + 0x7f7f7f7fu;
  w |= (w & 0x7f7f7f7fu) + 0x7f7f7f7fu;
  return ~((x & w & 0x80808080u) >> 7);
}

struct mean {
  float inverse;
  bool is_zero;
  GYRE_DEVICE void of(int sum) {
    const int m = max(over_quad(sum), 1) / WIDTH;
    is_zero = m == 0;
    inverse = 1.0f / (float)max(m, 1);
  }
};

/// clip(floor(x w / m)). The product comes out of dp4a as a float of 2^23 + 2^22 + x w; half of 1 / m more
/// keeps whole quotients above what rounding takes.
GYRE_DEVICE u32 normalized(u32 x, u32 w, const mean &m) {
  constexpr int MAGIC = 0x4B400000;
  u32 q[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float p = __int_as_float(dot(x, w & (0xffu << 8 * i), MAGIC)) - 12582912.0f;
    q[i] = __float_as_uint(__fadd_rd(__fmaf_rn(p, m.inverse, 0.5f * m.inverse), 12582912.0f));
  }
  return packed(clipped(bytes_of(q[0], q[1], 0x5410)), clipped(bytes_of(q[2], q[3], 0x5410)));
}
GYRE_DEVICE uint4 normalized(const uint4 &x, const uint4 &w, const mean &m) {
  if (m.is_zero)
    return make_uint4(without_mean(x.x, w.x), without_mean(x.y, w.y), without_mean(x.z, w.z),
                      without_mean(x.w, w.w));
  return make_uint4(normalized(x.x, w.x, m), normalized(x.y, w.y, m), normalized(x.z, w.z, m),
                    normalized(x.w, w.w, m));
}

// MARK: scores

// floor(2^26 * 16 * 2^(i / 16)): 16 * 2^(y / 16) is entry y mod 16 shifted right by 26 - y / 16.
__constant__ u32 powers_of_two[16] = {
    1073741824, 1121280435, 1170923761, 1222764985, 1276901416, 1333434672, 1392470868, 1454120821,
    1518500249, 1585729999, 1655936264, 1729250826, 1805811301, 1885761398, 1969251187, 2056437386};

/// trunc(16 log2(S / 16)), exactly: entry j of `powers` is floor(2^(30 + j / 16)), one below its ceiling.
GYRE_DEVICE int log_of(u32 s, const u32 *powers) {
  const int top = 31 - __clz(s);
  const u32 mantissa = s << (30 - top);
  int j = 0;
#pragma unroll
  for (int step = 8; step > 0; step /= 2) j += mantissa > powers[j + step] ? step : 0;
  return 16 * (top - 4) + j;
}
