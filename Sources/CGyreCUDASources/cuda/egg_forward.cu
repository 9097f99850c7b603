// EGG's perturbed forward pass of a window of tokens (the equations: Sources/GyreRecurrence/Egg). A block
// takes one or two tiles of 64 members through all tokens; shared memory holds pieces of weights and what
// goes from one product to the next, each number read by the thread that wrote it. Models that are too wide for
// that keep what goes from product to product in the device's memory, and go through inputs in parts.
#include "egg_numbers.cuh"
#include "egg_pipeline.cuh"

constexpr int WORDS = 4 * DEEP;     // of a row of an operand in a thread
constexpr int STEPS = 2 * DEEP;     // of the inputs of a product
constexpr int BUFFERS = IS_WIDE ? 8 : 4;  // of CHUNKS chunks: x, operands, gates, candidates, hidden
constexpr int HEADS = IS_WIDE ? WIDE : 1;  // chunks of logits at once

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
  GYRE_DEVICE void load(rows_buffer &b, int first = 0) {
#pragma unroll
    for (int n = 0; n < DEEP; n++)
#pragma unroll
      for (int r = 0; r < ROWS; r++) set(n, r, b.at(first + n, r));
  }
};

struct member_thread {
  pipeline weights;
  rows_buffer x, operands, gate, candidate, hidden;
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
  /// The next records, in order.
  template <typename... Records> GYRE_DEVICE void take_records(Records &...to) {
    ((to = record()), ...);
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
    for (int i = 0; i < FACTORS; i++) z[i][0] = z[i][1] = 0;
    uint4 next[ROWS + FACTORS];
#pragma unroll
    for (int i = 0; i < ROWS + FACTORS; i++) next[i] = record();
#pragma unroll
    for (int r = 0; r < ROWS; r++) m[r].of(sums[r]);
#pragma unroll 1
    for (int n = 0; n < CHUNKS; n++) {
      uint4 w[ROWS], b[FACTORS];
#pragma unroll
      for (int r = 0; r < ROWS; r++) w[r] = next[r];
#pragma unroll
      for (int i = 0; i < FACTORS; i++) b[i] = next[ROWS + i];
      if (n + 1 < CHUNKS)
#pragma unroll
        for (int i = 0; i < ROWS + FACTORS; i++) next[i] = record();
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

  /// The operand of the products that follow, where it fits registers.
  GYRE_DEVICE void take(rows_buffer &from) {
    if (!IS_WIDE) left.load(from);
  }
  /// Sums of 64 WIDE outputs each, of all inputs: of `left`, or of a wide model's `from` part by part.
  template <int PARTS = SPLITS, int COUNT = WIDE>
  GYRE_DEVICE void outputs(int (&acc)[COUNT][32], rows_buffer &from) {
    if constexpr (IS_WIDE) {
#pragma unroll 1
      for (int s = 0; s < PARTS; s++) {
        left.load(from, s * DEEP);
#pragma unroll
        for (int i = 0; i < COUNT; i++)
          multiply<64, STEPS>(acc[i], left.x[0], left.x[1], weights.acquire(), s > 0);
        products_commit();
        products_wait();
#pragma unroll
        for (int i = 0; i < COUNT; i++) weights.release();
      }
    } else {
#pragma unroll
      for (int i = 0; i < COUNT; i++)
        multiply<64, STEPS>(acc[i], left.x[0], left.x[1], weights.acquire(), false);
      products_commit();
      products_wait();
#pragma unroll
      for (int i = 0; i < COUNT; i++) weights.release();
    }
  }

  /// to = clipped products of the operand.
  GYRE_DEVICE void project(const int (&z)[ROWS], rows_buffer &to) {
#pragma unroll 1
    for (int n = 0; n < CHUNKS; n += WIDE) {
      uint4 a[WIDE];
      int acc[WIDE][32];
#pragma unroll
      for (int i = 0; i < WIDE; i++) a[i] = record();
      outputs(acc, operands);
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
      for (int i = 0; i < WIDE; i++) take_records(a[i], bias[i][0], bias[i][1], b[i]);
      outputs(acc, hidden);
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
      for (int i = 0; i < WIDE; i++) take_records(a[i], bias[i][0], bias[i][1]);
      outputs(acc, operands);
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
  template <int OUTPUTS>
  GYRE_DEVICE void feed_forward(const int (&up)[ROWS]) {
    int down[OUTPUTS / 2], z[ROWS] = {0, 0};
    u32 hidden[ROWS][4];
#pragma unroll
    for (int i = 0; i < OUTPUTS / 2; i++) down[i] = 0;
#pragma unroll 1
    for (int c = 0; c < 4 * CHUNKS; c++) {
      const uint4 a = record(), b = record();
      int acc[32];
      // Kept over the loop, the operand's registers would be too many.
      left.load(operands);
      multiply<64, STEPS>(acc, left.x[0], left.x[1], weights.acquire(), false);
      products_commit();
      products_wait();
      // The product of the hidden features before ran meanwhile.
      if (c > 0) weights.release();
      weights.release();
      const pairs y = scaled<WIDTH>(acc, a, up);
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
          hidden[r][k] = packed(y.row[r][2 * k], y.row[r][2 * k + 1]);
          z[r] = dot(hidden[r][k], word_of(b, k), z[r]);
        }
      }
      multiply<OUTPUTS, 2>(down, hidden[0], hidden[1], weights.acquire(), true);
      products_commit();
    }
    products_wait();
    weights.release();
    signed_sums(z);
    sums[0] = sums[1] = 0;
#pragma unroll
    for (int n = 0; n < CHUNKS; n++) add(scaled<4 * WIDTH>(down + 32 * n, record(), z), n);
  }
  /// x = clip(x + y) of a chunk.
  GYRE_DEVICE void add(const pairs &y, int n) {
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
  /// The same, all hidden features first.
  GYRE_DEVICE void wide_feed_forward(const int (&up)[ROWS]) {
    int z[ROWS] = {0, 0};
#pragma unroll 1
    for (int c = 0; c < 4 * CHUNKS; c += WIDE) {
      uint4 a[WIDE], b[WIDE];
      int acc[WIDE][32];
#pragma unroll
      for (int i = 0; i < WIDE; i++) take_records(a[i], b[i]);
      outputs(acc, operands);
#pragma unroll
      for (int i = 0; i < WIDE; i++) {
        const pairs y = scaled<WIDTH>(acc[i], a[i], up);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
          const uint4 v = packed(y.row[r]);
          hidden.at(c + i, r) = v;
          z[r] = dot(v, b[i], z[r]);
        }
      }
    }
    signed_sums(z);
    sums[0] = sums[1] = 0;
#pragma unroll 1
    for (int n = 0; n < CHUNKS; n += WIDE) {
      uint4 a[WIDE];
      int acc[WIDE][32];
#pragma unroll
      for (int i = 0; i < WIDE; i++) a[i] = record();
      outputs<4 * SPLITS>(acc, hidden);
#pragma unroll
      for (int i = 0; i < WIDE; i++) add(scaled<4 * WIDTH>(acc[i], a[i], z), n + i);
    }
  }

  GYRE_DEVICE void layer() {
    int z[2][ROWS], s[ROWS] = {0, 0}, p[ROWS];
    norm<2>(z);
    take(operands);
    project(z[0], gate);
    project(z[1], candidate);
#pragma unroll(IS_WIDE ? 1 : CHUNKS)
    for (int n = 0; n < CHUNKS; n++) {
      const uint4 b = record();
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const uint4 old = old_state(n, r);
        if constexpr (IS_WIDE) hidden.at(n, r) = old;
        else left.set(n, r, old);
        s[r] = dot(old, b, s[r]);
      }
    }
    signed_sums(s);
    gates(s, p);
    take(operands);
    recur(p);
    int u[1][ROWS];
    norm<1>(u);
    if constexpr (IS_WIDE) wide_feed_forward(u[0]);
    else feed_forward<PADDED>(u[0]);
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
    take(operands);
    const int q = threadIdx.x % 4;
#pragma unroll 1
    for (int first = 0; first < 4; first += HEADS) {
      uint4 a[HEADS];
      int acc[HEADS][32];
#pragma unroll
      for (int i = 0; i < HEADS; i++) a[i] = record();
      outputs(acc, operands);
#pragma unroll
      for (int i = 0; i < HEADS; i++) {
        const int n = first + i;
        const pairs y = scaled<WIDTH>(acc[i], a[i], z[0]);
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
    for (int p = 0; p < a.layers * LAYER_PIECES + HEAD_PIECES; p++) {
      const int layer = p / LAYER_PIECES, j = p % LAYER_PIECES;
      const bool is_head = layer >= a.layers;
      const int until = is_head ? (int)a.records : CHUNKS + layer * LAYER_RECORDS + records_after(j);
      for (int i = 0; i < (IS_WIDE ? 0 : tiles); i++) {
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
  m.hidden.first = m.candidate.first + BUFFER;  // of wide models alone
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
// memory: the pipeline's pieces, four buffers a tile unless the model is wide, tables, barriers.
extern "C" __global__ void __launch_bounds__(GYRE_WGMMA ? 384 : 256, 1)
    egg_forward(const __grid_constant__ gyre_egg_forward_args a) {
  extern __shared__ __align__(128) s8 memory[];
  constexpr int OF_TILE = BUFFERS * CHUNKS * ROWS * GYRE_EGG_THREADS;
  const int tiles = blockDim.x / 128 - GYRE_WGMMA, group = threadIdx.x / 128;
  uint4 *const behind = (uint4 *)(memory + a.stages * PIECE);
  uint4 *const buffers = IS_WIDE ? (uint4 *)a.buffers + (long)blockIdx.x * tiles * OF_TILE : behind;
  u32 *powers = (u32 *)(IS_WIDE ? behind : behind + tiles * OF_TILE);
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
    run_tile(a, weights, buffers + group * OF_TILE, powers, tile + group);
  }
#else
  weights.init(shared_address(memory), a.stages, a.pieces, a.layers * LAYER_PIECES + HEAD_PIECES, a.tokens);
  __syncthreads();
  run_tile(a, weights, buffers + group * OF_TILE, powers, tile + group);
#endif
}
