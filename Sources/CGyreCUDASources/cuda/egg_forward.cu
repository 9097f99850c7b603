// EGG's perturbed forward pass of a window of tokens (the equations: Sources/GyreRecurrence/Egg). A block
// takes one or two tiles of 64 members through all tokens; shared memory holds pieces of weights and what
// goes from one product to the next, each number read by the thread that wrote it.
#include "egg_pipeline.cuh"

constexpr int ROWS = 2;                      // members of a thread
constexpr int WORDS = 4 * CHUNKS;            // of a row of activations in a thread
constexpr int STEPS = PADDED / 32;           // of the inputs of a product
constexpr int WIDE = CHUNKS % 2 == 0 ? 2 : 1;  // pieces whose sums are made together
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

// MARK: a thread's part of the pass

/// Where a thread keeps 16 features of a row of every chunk.
struct rows_buffer {
  uint4 *first;
  GYRE_DEVICE uint4 &at(int chunk, int row) { return first[(chunk * ROWS + row) * GYRE_EGG_THREADS]; }
};

struct operand {
  u32 x[ROWS][WORDS];
  GYRE_DEVICE void set(int chunk, int row, const uint4 &v) {
    x[row][4 * chunk] = v.x, x[row][4 * chunk + 1] = v.y;
    x[row][4 * chunk + 2] = v.z, x[row][4 * chunk + 3] = v.w;
  }
  GYRE_DEVICE void load(rows_buffer &b) {
#pragma unroll
    for (int n = 0; n < CHUNKS; n++)
#pragma unroll
      for (int r = 0; r < ROWS; r++) set(n, r, b.at(n, r));
  }
};

struct member_thread {
  pipeline weights;
  rows_buffer x, operands, gate, candidate;
  const uint4 *noise;
  uint4 *state;
  u32 keeps[ROWS];    // all ones, or 0 where a document begins
  int sums[ROWS];     // of magnitudes of x
  operand left;

  GYRE_DEVICE uint4 record() {
    uint4 r;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "l"(noise));
    noise += GYRE_EGG_THREADS;
    return r;
  }
  GYRE_DEVICE uint4 old_state(int chunk, int row) {
    uint4 s = state[(chunk * ROWS + row) * GYRE_EGG_THREADS];
    s.x &= keeps[row], s.y &= keeps[row], s.z &= keeps[row], s.w &= keeps[row];
    return s;
  }

  /// operands = norm(x) with the member's own weights; z[i] = s (operands . B_i).
  template <int FACTORS>
  GYRE_DEVICE void norm(int (&z)[FACTORS][ROWS]) {
    mean m[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) m[r].of(sums[r]);
#pragma unroll
    for (int i = 0; i < FACTORS; i++) z[i][0] = z[i][1] = 0;
#pragma unroll 1
    for (int n = 0; n < CHUNKS; n++) {
      uint4 w[ROWS], b[FACTORS];
#pragma unroll
      for (int r = 0; r < ROWS; r++) w[r] = record();
#pragma unroll
      for (int i = 0; i < FACTORS; i++) b[i] = record();
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const uint4 u = normalized(x.at(n, r), w[r], m[r]);
        operands.at(n, r) = u;
#pragma unroll
        for (int i = 0; i < FACTORS; i++) z[i][r] = dot(u, b[i], z[i][r]);
      }
    }
#pragma unroll
    for (int i = 0; i < FACTORS; i++) signed_sums(z[i]);
  }
  GYRE_DEVICE void signed_sums(int (&z)[ROWS]) {
    z[0] = over_quad(z[0]);
    z[1] = -over_quad(z[1]);
  }

  /// Sums of 64 WIDE outputs each, of all inputs.
  GYRE_DEVICE void outputs(int (&acc)[WIDE][32]) {
    products_begin();
#pragma unroll
    for (int i = 0; i < WIDE; i++) multiply<64, STEPS>(acc[i], left.x[0], left.x[1], weights.acquire(), false);
    products_commit();
    products_wait();
#pragma unroll
    for (int i = 0; i < WIDE; i++) weights.release();
  }

  /// to = clipped products of the operand.
  GYRE_DEVICE void project(const int (&z)[ROWS], rows_buffer &to) {
#pragma unroll 1
    for (int n = 0; n < CHUNKS; n += WIDE) {
      uint4 a[WIDE];
      int acc[WIDE][32];
#pragma unroll
      for (int i = 0; i < WIDE; i++) a[i] = record();
      outputs(acc);
#pragma unroll
      for (int i = 0; i < WIDE; i++) {
        const pairs y = scaled<WIDTH>(acc[i], a[i], z);
#pragma unroll
        for (int r = 0; r < ROWS; r++) to.at(n + i, r) = packed(y.row[r]);
      }
    }
  }

  /// gate = f + 127, f = clip(f1 + s Uf + bf); operands = gate s >> 8; z = s (operands . B).
  GYRE_DEVICE void gates(const int (&uf)[ROWS], int (&z)[ROWS]) {
    z[0] = z[1] = 0;
#pragma unroll 1
    for (int n = 0; n < CHUNKS; n += WIDE) {
      uint4 a[WIDE], bias[WIDE][ROWS], b[WIDE];
      int acc[WIDE][32];
#pragma unroll
      for (int i = 0; i < WIDE; i++) {
        a[i] = record();
        bias[i][0] = record();
        bias[i][1] = record();
        b[i] = record();
      }
      outputs(acc);
#pragma unroll
      for (int i = 0; i < WIDE; i++) {
        const pairs y = scaled<WIDTH>(acc[i], a[i], uf);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          const uint4 f1 = gate.at(n + i, r), s = old_state(n + i, r);
          u32 g[4], p[4];
#pragma unroll
          for (int k = 0; k < 4; k++) {
            u32 half[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
              const u32 rest = __vadd2(pair_of(word_of(f1, k), h), pair_of(word_of(bias[i][r], k), h));
              half[h] = __viaddmin_s16x2_relu(__vadd2(y.row[r][2 * k + h], HIGHEST), rest, 0x00fe00fe);
            }
            g[k] = packed(half[0], half[1]);
            const u32 word = word_of(s, k), even = g[k] & 0x00ff00ffu, odd = g[k] & 0xff00ff00u;
            const u32 p0 = product<0>(low_pair(word), even), p1 = product<0>(low_pair(word), odd);
            const u32 p2 = product<1>(high_pair(word), even), p3 = product<1>(high_pair(word), odd);
            p[k] = bytes_of(bytes_of(p0, p1, 0x0051), bytes_of(p2, p3, 0x0051), 0x5410);
          }
          gate.at(n + i, r) = make_uint4(g[0], g[1], g[2], g[3]);
          const uint4 v = make_uint4(p[0], p[1], p[2], p[3]);
          operands.at(n + i, r) = v;
          z[r] = dot(v, b[i], z[r]);
        }
      }
    }
    signed_sums(z);
  }
  /// The sum of a pair's products with two bytes that are not negative, one of which is 0.
  template <int HIGH>
  GYRE_DEVICE u32 product(u32 pair, u32 bytes) {
    u32 r;
    if (HIGH) asm("dp2a.hi.s32.u32 %0, %1, %2, 0;" : "=r"(r) : "r"(pair), "r"(bytes));
    else asm("dp2a.lo.s32.u32 %0, %1, %2, 0;" : "=r"(r) : "r"(pair), "r"(bytes));
    return r;
  }

  /// state += gate (h - state) >> 8, h = clip(h1 + operands Uh + bh); x = clip(x + state).
  GYRE_DEVICE void recur(const int (&uh)[ROWS]) {
    sums[0] = sums[1] = 0;
#pragma unroll 1
    for (int n = 0; n < CHUNKS; n += WIDE) {
      uint4 a[WIDE], bias[WIDE][ROWS];
      int acc[WIDE][32];
#pragma unroll
      for (int i = 0; i < WIDE; i++) {
        a[i] = record();
        bias[i][0] = record();
        bias[i][1] = record();
      }
      outputs(acc);
#pragma unroll
      for (int i = 0; i < WIDE; i++) {
        const pairs y = scaled<WIDTH>(acc[i], a[i], uh);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          const uint4 h1 = candidate.at(n + i, r), s = old_state(n + i, r), g = gate.at(n + i, r);
          const uint4 before = x.at(n + i, r);
          u32 after[4], sum[4];
#pragma unroll
          for (int k = 0; k < 4; k++) {
            const u32 even = word_of(g, k) & 0x00ff00ffu, odd = word_of(g, k) & 0xff00ff00u;
            u32 next[2], total[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
              const u32 rest = __vadd2(pair_of(word_of(h1, k), h), pair_of(word_of(bias[i][r], k), h));
              const u32 old = pair_of(word_of(s, k), h);
              const u32 d = __vsub2(clipped_sum(y.row[r][2 * k + h], rest), old);
              const u32 p0 = h ? product<1>(d, even) : product<0>(d, even);
              const u32 p1 = h ? product<1>(d, odd) : product<0>(d, odd);
              next[h] = __vadd2(old, bytes_of(p0, p1, 0x6521));
              total[h] = clipped_sum(next[h], pair_of(word_of(before, k), h));
            }
            after[k] = packed(next[0], next[1]);
            sum[k] = packed(total[0], total[1]);
            sums[r] = magnitude(sum[k], sums[r]);
          }
          state[((n + i) * ROWS + r) * GYRE_EGG_THREADS] = make_uint4(after[0], after[1], after[2], after[3]);
          x.at(n + i, r) = make_uint4(sum[0], sum[1], sum[2], sum[3]);
        }
      }
    }
  }

  /// x = clip(x + (operand @ up) @ down): 64 hidden features at a time.
  GYRE_DEVICE void feed_forward(const int (&up)[ROWS]) {
    int down[32 * CHUNKS], z[ROWS] = {0, 0};
#pragma unroll
    for (int i = 0; i < 32 * CHUNKS; i++) down[i] = 0;
#pragma unroll 1
    for (int c = 0; c < 4 * CHUNKS; c++) {
      const uint4 a = record(), b = record();
      int acc[32];
      // Kept over the loop, the operand's registers would be too many.
      left.load(operands);
      products_begin();
      multiply<64, STEPS>(acc, left.x[0], left.x[1], weights.acquire(), false);
      products_commit();
      products_wait();
      weights.release();
      const pairs y = scaled<WIDTH>(acc, a, up);
      u32 hidden[ROWS][4];
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
          hidden[r][k] = packed(y.row[r][2 * k], y.row[r][2 * k + 1]);
          z[r] = dot(hidden[r][k], word_of(b, k), z[r]);
        }
      }
      products_begin();
      multiply<PADDED, 2>(down, hidden[0], hidden[1], weights.acquire(), true);
      products_commit();
      products_wait();
      weights.release();
    }
    signed_sums(z);
    sums[0] = sums[1] = 0;
#pragma unroll
    for (int n = 0; n < CHUNKS; n++) {
      const pairs y = scaled<4 * WIDTH>(down + 32 * n, record(), z);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const uint4 before = x.at(n, r);
        u32 sum[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
          sum[k] = packed(clipped_sum(y.row[r][2 * k], low_pair(word_of(before, k))),
                          clipped_sum(y.row[r][2 * k + 1], high_pair(word_of(before, k))));
          sums[r] = magnitude(sum[k], sums[r]);
        }
        x.at(n, r) = make_uint4(sum[0], sum[1], sum[2], sum[3]);
      }
    }
  }

  GYRE_DEVICE void layer() {
    int z[2][ROWS], s[ROWS] = {0, 0}, p[ROWS];
    norm<2>(z);
    left.load(operands);
    project(z[0], gate);
    project(z[1], candidate);
#pragma unroll
    for (int n = 0; n < CHUNKS; n++) {
      const uint4 b = record();
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const uint4 old = old_state(n, r);
        left.set(n, r, old);
        s[r] = dot(old, b, s[r]);
      }
    }
    signed_sums(s);
    gates(s, p);
    left.load(operands);
    recur(p);
    int u[1][ROWS];
    norm<1>(u);
    feed_forward(u[0]);
  }

  /// x = clip(emb[token] + (s A_token B >> shift)).
  GYRE_DEVICE void embed(const s8 *emb, const int (&token)[ROWS], const s8 *of_pair) {
    int a[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      a[r] = of_pair[token[r] * GYRE_EGG_PAIRS];
      keeps[r] = token[r] == 0 ? 0u : ~0u;
      sums[r] = 0;
    }
    a[1] = -a[1];
#pragma unroll 1
    for (int n = 0; n < CHUNKS; n++) {
      const uint4 b = record();
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const uint4 e = *(const uint4 *)(emb + token[r] * PADDED + 64 * n + 16 * (threadIdx.x % 4));
        u32 sum[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
          const u32 word = word_of(b, k);
          const u32 low = bytes_of((u32)((a[r] * signed_byte<0>(word)) >> SHIFT),
                                   (u32)((a[r] * signed_byte<1>(word)) >> SHIFT), 0x5410);
          const u32 high = bytes_of((u32)((a[r] * signed_byte<2>(word)) >> SHIFT),
                                    (u32)((a[r] * signed_byte<3>(word)) >> SHIFT), 0x5410);
          sum[k] = packed(clipped_sum(low, low_pair(word_of(e, k))),
                          clipped_sum(high, high_pair(word_of(e, k))));
          sums[r] = magnitude(sum[k], sums[r]);
        }
        x.at(n, r) = make_uint4(sum[0], sum[1], sum[2], sum[3]);
      }
    }
  }

  /// The log-likelihoods of the targets, in all threads of a quad; logits where asked.
  GYRE_DEVICE void score(const int (&target)[ROWS], const u32 *powers, const u32 *roots, s8 *(&logits)[ROWS],
                         int (&found)[ROWS]) {
    int z[1][ROWS], wanted[ROWS] = {0, 0};
    u32 partition[ROWS] = {0, 0};
    norm<1>(z);
    left.load(operands);
    const int q = threadIdx.x % 4;
#pragma unroll 1
    for (int n = 0; n < 4; n++) {
      const uint4 a = record();
      int acc[32];
      products_begin();
      multiply<64, STEPS>(acc, left.x[0], left.x[1], weights.acquire(), false);
      products_commit();
      products_wait();
      weights.release();
      const pairs y = scaled<WIDTH>(acc, a, z[0]);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const bool is_here = target[r] / 16 == 4 * n + q;
        u32 pair = 0;
#pragma unroll
        for (int j = 0; j < 8; j++) {
          const u32 v = __vadd2(y.row[r][j], 0x00800080);
          partition[r] += powers[v & 0xffff] + powers[v >> 16];
          if (target[r] % 16 / 2 == j) pair = v;
        }
        if (is_here) wanted[r] = target[r] % 2 ? pair >> 16 : pair & 0xffff;
        if (logits[r]) *(uint4 *)(logits[r] + 64 * n + 16 * q) = packed(y.row[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
      found[r] = over_quad(wanted[r]) - log_of((u32)over_quad((int)partition[r]), roots);
  }
};

#if GYRE_WGMMA
GYRE_DEVICE void prefetch(const s8 *from, u32 bytes) {
  if (bytes > 0)
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

/// Records of a layer that are read by the end of the products of piece j.
GYRE_DEVICE int records_after(int j) {
  constexpr int C = CHUNKS;
  if (j < C) return 5 * C;
  if (j < 2 * C) return 7 * C;
  if (j < 3 * C) return 11 * C;
  if (j < 4 * C) return 17 * C;
  return min(17 * C + 2 * ((j - 4 * C) / 2 + 2), 26 * C);
}

/// The copying thread: all pieces of all tokens, and the records that go with them to the cache.
GYRE_DEVICE void copy_weights(const gyre_egg_forward_args &a, pipeline &weights, long tile, int tiles) {
  const long of_states = a.layers * ROWS * CHUNKS * RECORD;
  for (long t = 0; t < a.tokens; t++) {
    int done = 0;
    for (int p = 0; p < a.layers * LAYER_PIECES + 4; p++) {
      const int layer = p / LAYER_PIECES, j = p % LAYER_PIECES;
      const bool is_head = layer >= a.layers;
      const int until = is_head ? (int)a.records : CHUNKS + layer * LAYER_RECORDS + records_after(j);
      for (int i = 0; i < tiles; i++) {
        prefetch(a.streams + ((tile + i) * a.records + done) * RECORD, (u32)(until - done) * RECORD);
        if (!is_head && j == 0)
          prefetch(a.working + (tile + i) * of_states + layer * ROWS * CHUNKS * RECORD, ROWS * CHUNKS * RECORD);
      }
      done = until;
      weights.fetch(a.pieces + (long)p * PIECE);
    }
  }
}
#endif

/// One tile through the window.
GYRE_DEVICE void run_tile(const gyre_egg_forward_args &a, pipeline &weights, uint4 *buffers, const u32 *powers,
                          long tile) {
  constexpr int BUFFER = CHUNKS * ROWS * GYRE_EGG_THREADS;
  const int t = threadIdx.x % 128, in_tile = t / 32 * 8 + t % 32 / 4, q = t % 4;
  member_thread m = {weights};
  m.x.first = buffers + t, m.operands.first = m.x.first + BUFFER;
  m.gate.first = m.operands.first + BUFFER, m.candidate.first = m.gate.first + BUFFER;
  const long first = 2 * ((a.first_tile + tile) * GYRE_EGG_PAIRS + in_tile);
  const uint4 *const records = (const uint4 *)(a.streams + tile * a.records * RECORD) + t;
  uint4 *const states = (uint4 *)(a.working + tile * a.layers * ROWS * CHUNKS * RECORD) + t;
  const s8 *const of_pair = a.embedding + tile * VOCABULARY * GYRE_EGG_PAIRS + in_tile;
  const unsigned char *text[ROWS];
  int token[ROWS], total[ROWS] = {0, 0};
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const long member = min(first + r, a.members - 1);
    text[r] = a.text + member / a.group * (a.tokens + 1);
    token[r] = text[r][0];
#pragma unroll 1
    for (int n = 0; n < a.layers * CHUNKS; n++) {
      const s8 *from = a.state + (member * a.layers + n / CHUNKS) * WIDTH;
      s8 *to = (s8 *)(states + (n * ROWS + r) * GYRE_EGG_THREADS);
#pragma unroll 1
      for (int k = 0; k < 16; k++) {
        const int i = 64 * (n % CHUNKS) + 16 * q + k;
        to[k] = i < WIDTH ? from[i] : 0;
      }
    }
  }
#pragma unroll 1
  for (long step = 0; step < a.tokens; step++) {
    m.noise = records;
    m.state = states;
    m.embed(a.emb, token, of_pair);
#pragma unroll 1
    for (int layer = 0; layer < a.layers; layer++) {
      m.layer();
      m.state += ROWS * CHUNKS * GYRE_EGG_THREADS;
    }
    int found[ROWS];
    s8 *logits[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      token[r] = text[r][step + 1];
      const bool keeps = a.logits && step == a.tokens - 1 && first + r < a.members;
      logits[r] = keeps ? a.logits + (first + r) * VOCABULARY : nullptr;
    }
    m.score(token, powers, powers + 256, logits, found);
#pragma unroll
    for (int r = 0; r < ROWS; r++) total[r] += found[r];
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    if (first + r >= a.members) break;
    if (q == 0) a.fitness[first + r] = total[r];
#pragma unroll 1
    for (int n = 0; n < a.layers * CHUNKS; n++) {
      const s8 *from = (const s8 *)(states + (n * ROWS + r) * GYRE_EGG_THREADS);
      s8 *to = a.state_out + ((first + r) * a.layers + n / CHUNKS) * WIDTH;
#pragma unroll 1
      for (int k = 0; k < 16; k++) {
        const int i = 64 * (n % CHUNKS) + 16 * q + k;
        if (i < WIDTH) to[i] = from[k];
      }
    }
  }
}

// Grid: blocks of 1 or 2 tiles; 128 threads a tile, and with wgmma 128 more, one of which copies. Shared
// memory: the pipeline's pieces, four buffers a tile, tables, barriers.
extern "C" __global__ void __launch_bounds__(GYRE_WGMMA ? 384 : 256, 1)
    egg_forward(const __grid_constant__ gyre_egg_forward_args a) {
  extern __shared__ __align__(128) s8 memory[];
  constexpr int BUFFERS = 4 * CHUNKS * ROWS * GYRE_EGG_THREADS;
  const int tiles = blockDim.x / 128 - GYRE_WGMMA, group = threadIdx.x / 128;
  uint4 *buffers = (uint4 *)(memory + a.stages * PIECE);
  u32 *powers = (u32 *)(buffers + tiles * BUFFERS);
  for (int i = threadIdx.x; i < 256 + 16; i += blockDim.x)
    powers[i] = i < 256 ? powers_of_two[i % 16] >> (26 - i / 16) : powers_of_two[i - 256];
  const long tile = (long)blockIdx.x * tiles;
  pipeline weights;
#if GYRE_WGMMA
  weights.init(shared_address(memory), shared_address(powers + 256 + 16), a.stages, 4 * tiles);
  if (group == tiles) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x % 128 == 0) copy_weights(a, weights, tile, tiles);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    run_tile(a, weights, buffers + group * BUFFERS, powers, tile + group);
  }
#else
  weights.init(shared_address(memory), a.stages, a.pieces, a.layers * LAYER_PIECES + 4, a.tokens);
  __syncthreads();
  run_tile(a, weights, buffers + group * BUFFERS, powers, tile + group);
#endif
}
