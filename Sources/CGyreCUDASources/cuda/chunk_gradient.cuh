// gradient: all gradients of a chunk from the state entering it (S) and the gradient of the state
// leaving it (dS), both kept by the walks.
//
//     linear        N = V                     dV = P̃ᵀ dO + K̃ dS
//     delta rule    N = T β V + W S           dV likewise (= β R),  dβ = rowsum(dV ∘ N) / β²
//     generalised   N = M V + W S             dV likewise,          R = Tᵀ (A_qbᵀ dO + B̂ dS)
//
// The gradients of the masked products, dA_qk = s tril(dO Xᵀ) with X = N (generalised: V, and
// dA_qb with N), dA_kk = −strict(dV Nᵀ), dA_ak = strict(R Vᵀ), dA_ab = strict(R Nᵀ), go to the rows
// and columns through the same hierarchy of halves as in prepare. The gradient of a token's log decay
// is the sum over all pairs whose path crosses it; each level's pairs cross the tokens of the later
// half up to the row and those of the earlier half from the column on, so nothing is subtracted.
#pragma once
#include "chunk_common.cuh"

template <int RULE, int K, int V>
struct GradientLayout {
  typedef Record<RULE, K> R;
  static constexpr int v = 0, dy = v + 64 * V, s = dy + 64 * V, ds = s + V * K;
  // Tiles of the first stage, later the results'.
  static constexpr int stage = ds + V * K;
  static constexpr int p = stage, kt = p + 4096, w = kt + 64 * K;
  static constexpr int b = w + (RULE == LINEAR ? 0 : 64 * K);
  static constexpr int t = b + (RULE == GENERAL ? 64 * K : 0);
  static constexpr int m = t + (RULE == LINEAR ? 0 : 4096), qb_tile = m + (RULE == GENERAL ? 4096 : 0);
  static constexpr int stage_end = qb_tile + (RULE == GENERAL ? 4096 : 0);
  static constexpr int n = stage, r = n + (RULE == LINEAR ? 0 : 64 * V);
  static constexpr int qk = r + (RULE == LINEAR ? 0 : 64 * V);
  static constexpr int ak = qk + 4096, qb = ak + (RULE == LINEAR ? 0 : 4096);
  static constexpr int ab = qb + (RULE == GENERAL ? 4096 : 0);
  static constexpr int raw_a = ab + (RULE == GENERAL ? 4096 : 0);
  static constexpr int raw_b = raw_a + (RULE == GENERAL ? 4096 : 0);
  static constexpr int result_end = raw_b + (RULE == GENERAL ? 4096 : 0);
  static constexpr int raw_q = stage_end > result_end ? stage_end : result_end;
  static constexpr int raw_k = raw_q + 4096;
  static constexpr int exchange = raw_k + 4096;  // 8 warps × 1280: level tiles, or float [16][40]
  static constexpr int total = exchange + 8 * 1280;   // float [4][64]
  static constexpr int cross = total + 512;           // float [4][4][64]
  static constexpr int carry = cross + 2048;          // float [8][64]
  static constexpr int sums = carry + 1024;           // float [2][64]
  static constexpr int beta = sums + 256, scalar = beta + 128, strength = scalar + 128;  // float [2][64]
  static constexpr int bytes = (strength + 256) * 2;
};

/// A warp's view of 16 tokens and 32 of a part's 64 channels; a lane holds two channels of 8 tokens.
template <int RULE>
struct Adjoint {
  const u16 *q, *k, *a, *b;  // raw tiles of 64 columns
  float *exchange;           // the warp's [16][40]
  int block, half;           // which 16 tokens, which 32 channels
  int pair, octet;
  u32 resets;                // of this lane's 8 tokens
  two before[8], after[8];
  two dq[8], dk[8], da[RULE == GENERAL ? 8 : 1], db[RULE == GENERAL ? 8 : 1], dg[8];

  DEV_MEMBER int place(int i) const { return at<64>(block * 16 + octet * 8 + i, half * 32 + pair * 2); }
  DEV_MEMBER u32 query(int i) const { return *(const u32 *)(q + place(i)); }
  DEV_MEMBER u32 key(int i) const { return *(const u32 *)(k + place(i)); }
  DEV_MEMBER u32 write(int i) const { return *(const u32 *)(b + place(i)); }
  DEV_MEMBER u32 erase(int i) const { return resets >> i & 1 ? 0 : *(const u32 *)(a + place(i)); }

  /// Token i as row or column of a level into the level's tiles.
  template <int W>
  DEV_MEMBER void put(u16 *x, u16 *x2, int row, int column, int i, bool is_row, two inclusive,
                      two exclusive) const {
    *(u32 *)(x + at<W>(row, column)) = scaled(is_row ? query(i) : key(i), inclusive);
    if (RULE == BETA) *(u32 *)(x2 + at<W>(row, column)) = is_row ? scaled(key(i), inclusive) : 0;
    if (RULE == GENERAL)
      *(u32 *)(x2 + at<W>(row, column)) = is_row ? scaled(erase(i), exclusive) : scaled(write(i), inclusive);
  }

  /// Accumulators [16, 32] → this lane's 8 tokens.
  DEV_MEMBER void turn(two (&to)[8], const float (&d)[4][4]) const {
    const int lane = threadIdx.x & 31, g = lane >> 2, c = (lane & 3) * 2;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < 4; n++) {
      *(two *)(exchange + g * 40 + n * 8 + c) = {d[n][0], d[n][1]};
      *(two *)(exchange + (g + 8) * 40 + n * 8 + c) = {d[n][2], d[n][3]};
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 8; i++) to[i] = *(const two *)(exchange + (octet * 8 + i) * 40 + pair * 2);
  }

  DEV_MEMBER static void add(two &to, two x) {
    to.x += x.x;
    to.y += x.y;
  }
  DEV_MEMBER static two value(u32 v) { return {low_of(v), high_of(v)}; }

  /// What row i gets as a later token: to dq and the erase row; returns its share of the pairs through
  /// token i, and through the tokens before i only.
  DEV_MEMBER void later(int i, two r1, two r2, two inclusive, two exclusive, two &through, two &past) {
    const two x = times(r1, inclusive);
    add(dq[i], x);
    through = times(value(query(i)), x);
    past = {0.0f, 0.0f};
    if (RULE == BETA) {
      const two y = times(r2, inclusive);
      add(dk[i], y);
      add(through, times(value(key(i)), y));
    }
    if (RULE == GENERAL) {
      two y = times(r2, exclusive);
      if (resets >> i & 1) y = {0.0f, 0.0f};
      add(da[RULE == GENERAL ? i : 0], y);
      past = times(value(erase(i)), y);
    }
  }
  DEV_MEMBER two earlier(int i, two r1, two r2, two inclusive) {
    const two x = times(r1, inclusive);
    add(dk[i], x);
    two through = times(value(key(i)), x);
    if (RULE == GENERAL) {
      const two y = times(r2, inclusive);
      add(db[RULE == GENERAL ? i : 0], y);
      add(through, times(value(write(i)), y));
    }
    return through;
  }

  /// Spreads the products of a level inside the block over this lane's tokens.
  template <int L>
  DEV_MEMBER void spread(const float (&r1)[4][4], const float (&r2)[4][4]) {
    const two one = {1.0f, 1.0f};
    two x[8], y[8];
    turn(x, r1);
    if (RULE != LINEAR) turn(y, r2);
    if (L == 8) {
      spread_run(x, y, 0, octet == 1);
    } else {
#pragma unroll
      for (int start = 0; start < 8; start += L) spread_half<L>(x, y, start, start & L);
    }
    (void)one;
  }
  template <int L>
  DEV_MEMBER void spread_half(const two (&x)[8], const two (&y)[8], int start, bool is_row) {
    two run = {0.0f, 0.0f};
    if (is_row) {
#pragma unroll
      for (int n = 0; n < L; n++) {
        const int i = start + L - 1 - n;
        two through, past;
        later(i, x[i], y[i], before[i], i & (L - 1) ? before[i ? i - 1 : 0] : two{1.0f, 1.0f}, through, past);
        add(run, through);
        add(dg[i], run);
        add(run, past);
      }
    } else {
#pragma unroll
      for (int n = 0; n < L; n++) {
        const int i = start + n;
        add(dg[i], run);
        add(run, earlier(i, x[i], y[i], after[i]));
      }
    }
  }
  DEV_MEMBER void spread_run(const two (&x)[8], const two (&y)[8], int start, bool is_row) {
    spread_half<8>(x, y, start, is_row);
  }

  /// The same for products that cover the whole block; factors as given, `first` the exclusive one of
  /// the lane's first token. Returns the sum over the block: what crosses other blocks.
  DEV_MEMBER two spread_block(const float (&r1)[4][4], const float (&r2)[4][4], bool is_row, two outer,
                              two first) {
    two x[8], y[8], run = {0.0f, 0.0f};
    turn(x, r1);
    if (RULE != LINEAR) turn(y, r2);
    two local[8];
    if (is_row) {
#pragma unroll
      for (int n = 0; n < 8; n++) {
        const int i = 7 - n;
        two through, past;
        later(i, x[i], y[i], times(before[i], outer), times(i ? before[i ? i - 1 : 0] : first, outer),
              through, past);
        add(run, through);
        local[i] = run;
        add(run, past);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        local[i] = run;
        add(run, earlier(i, x[i], y[i], times(after[i], outer)));
      }
    }
    const two other = {__shfl_xor_sync(0xffffffffu, run.x, 16), __shfl_xor_sync(0xffffffffu, run.y, 16)};
    // Rows reach back over earlier tokens, columns forward over later ones.
    const bool is_crossed = is_row ? octet == 0 : octet == 1;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      add(dg[i], local[i]);
      if (is_crossed) add(dg[i], other);
    }
    return {run.x + other.x, run.y + other.y};
  }
};

/// Bits of a pair of neighbouring columns that belong to level L with `row` later (or earlier).
template <int L>
DEV u32 level_mask(int row, int column, bool is_row) {
  const bool low = is_row ? is_level<L>(row, column) : is_level<L>(column, row);
  const bool high = is_row ? is_level<L>(row, column + 1) : is_level<L>(column + 1, row);
  return (low ? 0xffffu : 0u) | (high ? 0xffff0000u : 0u);
}

/// r += a (16×16) times 16 rows of x from `row`, 32 columns from `column`.
template <int W>
DEV void add_product(float (&r)[4][4], const u32 (&a)[4], const u16 *x, int row, int column) {
#pragma unroll
  for (int n = 0; n < 2; n++) {
    u32 b[4];
    load_b_t<W>(b, x, column + n * 16, row);
    mma(r[n * 2], a, b[0], b[1]);
    mma(r[n * 2 + 1], a, b[2], b[3]);
  }
}

/// The gradients of the products between block `w` and block `o`, as operands: what rows get where
/// `w` is the later block, what columns get (transposed) where it is the earlier one.
template <int RULE, typename L>
DEV void add_blocks(float (&r1)[4][4], float (&r2)[4][4], const u16 *m, int w, int o, bool is_row,
                    const u16 *x, const u16 *x2, int column) {
  u32 f[4];
  if (is_row)
    load_a<64>(f, m + L::qk, w * 16, o * 16);
  else
    load_a_t<64>(f, m + L::qk, w * 16, o * 16);
  add_product<64>(r1, f, x, o * 16, column);
  if (RULE == BETA) {
    if (is_row) {
      load_a<64>(f, m + L::ak, w * 16, o * 16);
      add_product<64>(r2, f, x, o * 16, column);
    } else {
      load_a_t<64>(f, m + L::ak, w * 16, o * 16);
      add_product<64>(r1, f, x2, o * 16, column);
    }
  }
  if (RULE == GENERAL) {
    if (is_row)
      load_a<64>(f, m + L::qb, w * 16, o * 16);
    else
      load_a_t<64>(f, m + L::ak, w * 16, o * 16);
    add_product<64>(r1, f, x2, o * 16, column);
    if (is_row)
      load_a<64>(f, m + L::ak, w * 16, o * 16);
    else
      load_a_t<64>(f, m + L::qb, w * 16, o * 16);
    add_product<64>(r2, f, x, o * 16, column);
    if (is_row)
      load_a<64>(f, m + L::ab, w * 16, o * 16);
    else
      load_a_t<64>(f, m + L::ab, w * 16, o * 16);
    add_product<64>(r2, f, x2, o * 16, column);
  }
}

/// One level of the block's own pairs.
template <int RULE, int LEVEL, typename L>
DEV void block_level(Adjoint<RULE> &x, const u16 *m, const u32 (&low)[RULE == LINEAR ? 1 : RULE == BETA ? 2 : 4][4],
                     const u32 (&up)[RULE == LINEAR ? 1 : RULE == BETA ? 2 : 4][4]) {
  const int lane = threadIdx.x & 31, g = lane >> 2, c = (lane & 3) * 2;
  u16 *t = (u16 *)x.exchange, *t2 = t + 512;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const bool is_row = LEVEL == 8 ? x.octet == 1 : (i & LEVEL) != 0;
    x.template put<32>(t, t2, x.octet * 8 + i, x.pair * 2, i, is_row, is_row ? x.before[i] : x.after[i],
                       i & (LEVEL - 1) ? x.before[i ? i - 1 : 0] : two{1.0f, 1.0f});
  }
  __syncwarp();
  u32 rows[4], columns[4];
#pragma unroll
  for (int r = 0; r < 4; r++) {
    rows[r] = level_mask<LEVEL>(g + (r & 1) * 8, c + (r >> 1) * 8, true);
    columns[r] = level_mask<LEVEL>(g + (r & 1) * 8, c + (r >> 1) * 8, false);
  }
  const auto both = [&](u32(&f)[4], const u32(&a)[4], const u32(&b)[4]) {
#pragma unroll
    for (int r = 0; r < 4; r++) f[r] = (a[r] & rows[r]) | (b[r] & columns[r]);
  };
  float r1[4][4], r2[4][4];
  clear(r1);
  clear(r2);
  u32 f[4];
  both(f, low[0], up[0]);
  add_product<32>(r1, f, t, 0, 0);
  if (RULE == BETA) {
#pragma unroll
    for (int r = 0; r < 4; r++) f[r] = up[RULE == BETA ? 1 : 0][r] & columns[r];
    add_product<32>(r1, f, t2, 0, 0);
#pragma unroll
    for (int r = 0; r < 4; r++) f[r] = low[RULE == BETA ? 1 : 0][r] & rows[r];
    add_product<32>(r2, f, t, 0, 0);
  }
  if (RULE == GENERAL) {  // products in the order qk, ak, qb, ab
    constexpr int ak = RULE == GENERAL ? 1 : 0, qb = RULE == GENERAL ? 2 : 0, ab = RULE == GENERAL ? 3 : 0;
    both(f, low[qb], up[ak]);
    add_product<32>(r1, f, t2, 0, 0);
    both(f, low[ak], up[qb]);
    add_product<32>(r2, f, t, 0, 0);
    both(f, low[ab], up[ab]);
    add_product<32>(r2, f, t2, 0, 0);
  }
  x.template spread<LEVEL>(r1, r2);
}

/// From products over groups of L tokens to groups of 2L, 8 tokens a lane.
template <int L>
DEV void widen8(two (&before)[8], two (&after)[8]) {
  two total[8 / L];
#pragma unroll
  for (int group = 0; group < 8 / L; group++) total[group] = before[group * L + L - 1];
#pragma unroll
  for (int i = 0; i < 8; i++) {
    if (i & L)
      before[i] = times(before[i], total[i / L - 1]);
    else
      after[i] = times(after[i], total[i / L + 1 < 8 / L ? i / L + 1 : 0]);
  }
}

/// A kept state, in the walk's order, as a [V, K] tile.
template <int K, int V>
DEV void load_state(u16 *tile, const void *kept, long long chunk, int values) {
  const int blocks = (values + 15) / 16;
  const uint4 *from = (const uint4 *)kept + chunk * blocks * (K / 16) * 32;
  for (int i = threadIdx.x; i < V / 16 * (K / 16) * 32; i += 256) {
    const int lane = i & 31, step = (i >> 5) % (K / 16), block = (i >> 5) / (K / 16);
    const int row = block * 16 + (lane >> 2), column = step * 16 + (lane & 3) * 2;
    uint4 x = {0, 0, 0, 0};
    if (block < blocks) x = from[i];
    *(u32 *)(tile + at<K>(row, column)) = x.x;
    *(u32 *)(tile + at<K>(row + 8, column)) = x.y;
    *(u32 *)(tile + at<K>(row, column + 8)) = x.z;
    *(u32 *)(tile + at<K>(row + 8, column + 8)) = x.w;
  }
}

/// The last stage where one decay serves all channels: decayed products act on the raw rows, and with
/// r_i, l_j the shares of row i and column j in the pairs inside the chunk, a token's log decay gets
/// Σ_{i ≥ t} (r_i − l_i); pairs on one side of t cancel, as both shares sum the same rounded products.
template <int RULE, int K, int V, typename E>
DEV void scalar_gradients(const MixerArgs &p, u16 *m, const ScalarDecays &decays, long long key_row,
                          long long key_stride, long long head_row, long long head_stride, int rows,
                          long long token, int head) {
  typedef GradientLayout<RULE, K, V> L;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = (lane & 3) * 2;
  const int w = warp & 3, half = warp >> 2;
  float *shares = (float *)(m + L::cross);  // [3][2][64]: rows minus columns, after, carry
  float row_share[2] = {0.0f, 0.0f}, after[2] = {0.0f, 0.0f}, carried = 0.0f;
  float lead[2], tail[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    lead[h] = decays.lead[w * 16 + g + h * 8];
    tail[h] = decays.tail[w * 16 + g + h * 8];
  }
#pragma unroll 1
  for (int part = 0; part < K / 64; part++) {
    if (part) {
      __syncthreads();
      load_rows<64>(m + L::raw_q, (const E *)p.q, key_row + part * 64, key_stride, rows, p.keys - part * 64, 256);
      load_rows<64>(m + L::raw_k, (const E *)p.k, key_row + part * 64, key_stride, rows, p.keys - part * 64, 256);
      copy_commit();
      copy_wait<0>();
      __syncthreads();
    }
    float dq[4][4], dk_row[4][4], dk[4][4], r[4][4];
    clear(dq);
    clear(dk_row);
    clear(dk);
    const u16 *q = m + L::raw_q, *k = m + L::raw_k;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      u32 f[4];
      if (j <= w) {
        load_a<64>(f, m + L::qk, w * 16, j * 16);
        add_product<64>(dq, f, k, j * 16, half * 32);
        if (RULE == BETA) {
          load_a<64>(f, m + L::ak, w * 16, j * 16);
          add_product<64>(dk_row, f, k, j * 16, half * 32);
        }
      }
      if (j >= w) {
        load_a_t<64>(f, m + L::qk, w * 16, j * 16);
        add_product<64>(dk, f, q, j * 16, half * 32);
        if (RULE == BETA) {
          load_a_t<64>(f, m + L::ak, w * 16, j * 16);
          add_product<64>(dk, f, k, j * 16, half * 32);
        }
      }
    }
    const auto row_of = [&](int h) { return w * 16 + g + h * 8; };
    const auto pair_of = [&](const u16 *tile, int n, int h) {
      const u32 x = *(const u32 *)(tile + at<64>(row_of(h), half * 32 + n * 8 + c));
      return two{low_of(x), high_of(x)};
    };
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const two key = pair_of(k, n, h);
        row_share[h] -= key.x * dk[n][h * 2] + key.y * dk[n][h * 2 + 1];
      }
    const auto state_product = [&](const u16 *left, const u16 *state) {
      clear(r);
#pragma unroll
      for (int s = 0; s < V / 16; s++) {
        u32 a[4];
        load_a<V>(a, left, w * 16, s * 16);
#pragma unroll
        for (int n = 0; n < 2; n++) {
          u32 b[4];
          load_b_t<K>(b, state, part * 64 + half * 32 + n * 16, s * 16);
          mma(r[n * 2], a, b[0], b[1]);
          mma(r[n * 2 + 1], a, b[2], b[3]);
        }
      }
    };
    const auto add_scaled = [&](float(&to)[4][4], const float(&f)[2], float sign) {
#pragma unroll
      for (int n = 0; n < 4; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) to[n][e] += r[n][e] * f[e >> 1] * sign;
    };
    state_product(m + L::dy, m + L::s);
    add_scaled(dq, lead, p.scale);
    if (RULE == BETA) {
      state_product(m + L::r, m + L::s);
      add_scaled(dk_row, lead, -1.0f);
    }
    state_product(m + (RULE == BETA ? L::n : L::v), m + L::ds);
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const two query = pair_of(q, n, h), key = pair_of(k, n, h);
        row_share[h] += query.x * dq[n][h * 2] + query.y * dq[n][h * 2 + 1];
        if (RULE == BETA) row_share[h] += key.x * dk_row[n][h * 2] + key.y * dk_row[n][h * 2 + 1];
        after[h] += tail[h] * (key.x * r[n][h * 2] + key.y * r[n][h * 2 + 1]);
      }
    add_scaled(dk, tail, 1.0f);
#pragma unroll
    for (int h = 0; h < 2; h++)
      if (row_of(h) < rows)
#pragma unroll
        for (int n = 0; n < 4; n++) {
          const int channel = part * 64 + half * 32 + n * 8 + c;
          if (channel >= p.keys) continue;
          const long long to = head_row + row_of(h) * head_stride + channel;
          store_two((E *)p.dq, to, dq[n][h * 2], dq[n][h * 2 + 1]);
          store_two((E *)p.dk, to, dk[n][h * 2] + dk_row[n][h * 2], dk[n][h * 2 + 1] + dk_row[n][h * 2 + 1]);
        }
    if (p.d_gate) {
      const int pair = threadIdx.x & 31;
#pragma unroll 4
      for (int v = warp; v < V; v += 8) {
        const u32 x = *(const u32 *)(m + L::s + at<K>(v, part * 64 + pair * 2));
        const u32 y = *(const u32 *)(m + L::ds + at<K>(v, part * 64 + pair * 2));
        carried += low_of(x) * low_of(y) + high_of(x) * high_of(y);
      }
    }
  }
  if (!p.d_gate) return;
#pragma unroll
  for (int h = 0; h < 2; h++) {
#pragma unroll
    for (int s = 1; s < 4; s *= 2) {
      row_share[h] += __shfl_xor_sync(0xffffffffu, row_share[h], s);
      after[h] += __shfl_xor_sync(0xffffffffu, after[h], s);
    }
    if ((lane & 3) == 0) {
      shares[half * 64 + w * 16 + g + h * 8] = row_share[h];
      shares[128 + half * 64 + w * 16 + g + h * 8] = after[h];
    }
  }
#pragma unroll
  for (int s = 1; s < 32; s *= 2) carried += __shfl_xor_sync(0xffffffffu, carried, s);
  if (lane == 0) shares[256 + warp] = carried;
  __syncthreads();
  if (warp) return;
  // Two tokens a lane: sums from the chunk's end, and of what lies before.
  float through = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; i++) through += shares[256 + i];
  through *= decays.lead[63];
  const int t0 = 62 - lane * 2;  // reversed, so that the scan runs from the end
  const float x1 = shares[t0 + 1] + shares[64 + t0 + 1], x0 = shares[t0] + shares[64 + t0];
  float back = x0 + x1;
  const float y0 = shares[128 + lane * 2] + shares[192 + lane * 2];
  const float y1 = shares[128 + lane * 2 + 1] + shares[192 + lane * 2 + 1];
  float ahead = y0 + y1;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const float b = __shfl_up_sync(0xffffffffu, back, d), a = __shfl_up_sync(0xffffffffu, ahead, d);
    if (lane >= d) {
      back += b;
      ahead += a;
    }
  }
  __syncwarp();
  shares[t0] = back;            // Σ from t0 on
  shares[t0 + 1] = back - x0;   // Σ from t0 + 1 on
  shares[128 + lane * 2] = ahead - y1 - y0;
  shares[128 + lane * 2 + 1] = ahead - y1;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int t = lane + i * 32;
    if (t < rows) {
      const bool is_closed = decays.closed[t] != (t ? decays.closed[t - 1] : 0.0f);
      ((float *)p.d_gate)[(token + t) * p.heads + head] =
          is_closed ? 0.0f : shares[t] + shares[128 + t] + through;
    }
  }
}

/// Grid (N, B·H), 256 threads, GradientLayout::bytes of shared memory; V: values rounded up to 64 or 128.
/// Reads q, k, v, a, b, gate, beta, reset, records, extras, states, state_gradients, dy; writes dq, dk,
/// dv, da, db, d_gate, d_beta. SCALAR: gate kinds 0 to 2, linear attention and the delta rule only, and
/// faster; without it any kind.
template <int RULE, int K, int V, bool SCALAR, typename E>
DEV void gradient(const MixerArgs &p) {
  typedef GradientLayout<RULE, K, V> L;
  typedef Record<RULE, K> R;
  constexpr int grams = RULE == LINEAR ? 1 : RULE == BETA ? 2 : 4;
  SHARED(memory);
  u16 *m = (u16 *)memory;
  float *total = (float *)(m + L::total), *cross = (float *)(m + L::cross);
  float *carries = (float *)(m + L::carry), *sums = (float *)(m + L::sums);
  float *beta = (float *)(m + L::beta), *scalar = (float *)(m + L::scalar);
  float *strengths = (float *)(m + L::strength);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = (lane & 3) * 2;
  const int w = warp & 3, half = warp >> 2;
  const int chunk = blockIdx.x, batch = blockIdx.y / p.heads, head = blockIdx.y % p.heads;
  const int start = chunk * CHUNK;
  const int key_head = head / (p.heads / p.key_heads);
  const long long place = (long long)blockIdx.y * p.chunks + chunk;
  const u16 *record = (const u16 *)(p.records + place * R::bytes);
  const int rows = p.tokens - start < CHUNK ? p.tokens - start : CHUNK;
  const long long token = (long long)batch * p.tokens + start;
  const long long value_row = (token * p.heads + head) * p.values;
  const long long value_stride = (long long)p.heads * p.values;
  const long long key_row = (token * p.key_heads + key_head) * p.keys;
  const long long key_stride = (long long)p.key_heads * p.keys;
  const long long head_row = (token * p.heads + head) * p.keys, head_stride = (long long)p.heads * p.keys;

  load_rows<V>(m + L::v, (const E *)p.v, value_row, value_stride, rows, p.values, 256);
  load_rows<V>(m + L::dy, (const E *)p.dy, value_row, value_stride, rows, p.values, 256);
  const auto image = [&](int to, const u16 *from, int count) {
    for (int i = threadIdx.x * 8; i < count; i += 256 * 8) copy16(m + to + i, from + i, true);
  };
  image(L::p, record + R::P, 4096 + 64 * K);
  if (RULE != LINEAR) {
    const u16 *extra = (const u16 *)(p.extras + place * R::extra);
    image(L::w, record + R::W, 64 * K);
    if (RULE == GENERAL) image(L::b, record + R::B, 64 * K);
    image(L::t, extra, RULE == GENERAL ? 3 * 4096 : 4096);
  }
  load_rows<64>(m + L::raw_q, (const E *)p.q, key_row, key_stride, rows, p.keys, 256);
  load_rows<64>(m + L::raw_k, (const E *)p.k, key_row, key_stride, rows, p.keys, 256);
  copy_commit();
  load_state<K, V>(m + L::s, p.states, place, p.values);
  load_state<K, V>(m + L::ds, p.state_gradients, place, p.values);
  if (RULE == BETA && threadIdx.x < CHUNK) {
    float x = 0.0f;
    if ((int)threadIdx.x < rows)
      x = load_any(p.beta, p.beta_is_float, (token + threadIdx.x) * p.heads + head);
    beta[threadIdx.x] = x < 1e-18f && x > -1e-18f ? 1e-18f : x;
  }
  ScalarDecays &decays = *(ScalarDecays *)total;
  if (SCALAR) {
    if (warp == 0) decays.fill(p, batch, head, start);
  } else {
    load_scalar_decays(scalar, p, batch, head, start);
  }
  if (threadIdx.x < 128) sums[threadIdx.x] = 0.0f;
  const u32 resets = SCALAR ? 0 : load_resets(p, batch, start + w * 16);
  copy_wait<0>();
  __syncthreads();

  // Stage 1, rows of block w, half of the value columns: N, dV, R.
  constexpr int VN = V / 16;  // accumulators of V / 2 columns
  const int v0 = half * (V / 2);
  float dv[VN][4], nv[VN][4], rv[VN][4];
  clear(dv);
  clear(nv);
  clear(rv);
  // d += (a tile of rows) × [k][n] tile, or × [n][k] tile of keys.
  const auto with_values = [&](float(&d)[VN][4], const u32(&a)[4], const u16 *tile, int row) {
#pragma unroll
    for (int n = 0; n < VN / 2; n++) {
      u32 b[4];
      load_b_t<V>(b, tile, v0 + n * 16, row);
      mma(d[n * 2], a, b[0], b[1]);
      mma(d[n * 2 + 1], a, b[2], b[3]);
    }
  };
  const auto with_state = [&](float(&d)[VN][4], const u16 *keys, const u16 *state) {
#pragma unroll
    for (int s = 0; s < K / 16; s++) {
      u32 a[4];
      load_a<K>(a, keys, w * 16, s * 16);
#pragma unroll
      for (int n = 0; n < VN / 2; n++) {
        u32 b[4];
        load_b<K>(b, state, v0 + n * 16, s * 16);
        mma(d[n * 2], a, b[0], b[1]);
        mma(d[n * 2 + 1], a, b[2], b[3]);
      }
    }
  };
  with_state(dv, m + L::kt, m + L::ds);
  if (RULE != LINEAR) with_state(nv, m + L::w, m + L::s);
  if (RULE == GENERAL) with_state(rv, m + L::b, m + L::ds);
#pragma unroll
  for (int j = 0; j < 4; j++) {
    u32 a[4];
    if (j >= w) {
      load_a_t<64>(a, m + L::p, w * 16, j * 16);
      with_values(dv, a, m + L::dy, j * 16);
      if (RULE == GENERAL) {
        load_a_t<64>(a, m + L::qb_tile, w * 16, j * 16);
        with_values(rv, a, m + L::dy, j * 16);
      }
    }
    if (RULE != LINEAR && j <= w) {
      load_a<64>(a, m + (RULE == BETA ? L::t : L::m), w * 16, j * 16);
      if (RULE == BETA) {
        // Columns of T times β.
        const float low0 = beta[j * 16 + c], low1 = beta[j * 16 + c + 1];
        const float high0 = beta[j * 16 + c + 8], high1 = beta[j * 16 + c + 9];
        a[0] = scaled(a[0], {low0, low1});
        a[1] = scaled(a[1], {low0, low1});
        a[2] = scaled(a[2], {high0, high1});
        a[3] = scaled(a[3], {high0, high1});
      }
      with_values(nv, a, m + L::v, j * 16);
    }
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = w * 16 + g + h * 8;
    if (row < rows)
#pragma unroll
      for (int n = 0; n < VN; n++) {
        const int column = v0 + n * 8 + c;
        if (column < p.values)
          store_two((E *)p.dv, value_row + row * value_stride + column, dv[n][h * 2], dv[n][h * 2 + 1]);
      }
    if (RULE == BETA) {
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < VN; n++) sum += dv[n][h * 2] * nv[n][h * 2] + dv[n][h * 2 + 1] * nv[n][h * 2 + 1];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if ((lane & 3) == 0) strengths[half * 64 + row] = sum;
    }
  }
  // ⟨S, dS⟩ of each channel, in eight shares; later summed in a fixed order.
  const auto add_carry = [&](int part) {
    const int pair = threadIdx.x & 31, group = threadIdx.x >> 5;
    two sum = {0.0f, 0.0f};
#pragma unroll 4
    for (int v = group; v < V; v += 8) {
      const u32 x = *(const u32 *)(m + L::s + at<K>(v, part * 64 + pair * 2));
      const u32 y = *(const u32 *)(m + L::ds + at<K>(v, part * 64 + pair * 2));
      sum.x += low_of(x) * low_of(y);
      sum.y += high_of(x) * high_of(y);
    }
    *(two *)(carries + group * 64 + pair * 2) = sum;
  };
  __syncthreads();
  if (RULE == GENERAL) {
    // R = Tᵀ dZ; dZ where N comes later. T stays where it is until the next barrier.
    store_tile<V>(m + L::n, w * 16, v0, rv);
    __syncthreads();
    clear(rv);
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (j >= w) {
        u32 a[4];
        load_a_t<64>(a, m + L::t, w * 16, j * 16);
        with_values(rv, a, m + L::n, j * 16);
      }
    __syncthreads();
  }
  if (RULE != LINEAR) {
    store_tile<V>(m + L::n, w * 16, v0, nv);
    store_tile<V>(m + L::r, w * 16, v0, RULE == BETA ? dv : rv);
  }
  if (RULE == BETA && threadIdx.x < rows && p.d_beta) {
    const float x = beta[threadIdx.x];
    p.d_beta[(token + threadIdx.x) * p.heads + head] =
        (strengths[threadIdx.x] + strengths[64 + threadIdx.x]) / x / x;
  }
  __syncthreads();

  // Stage 2: gradients of the masked products; warp (w, half) makes column blocks 2 half, 2 half + 1.
  {
    const auto masked = [&](const u16 *left, const u16 *right, u16 *to, float factor, bool is_strict) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int block = half * 2 + j;
        float d[2][4];
        clear(d);
        if (block <= w)
#pragma unroll
          for (int s = 0; s < V / 16; s++) {
            u32 a[4], b[4];
            load_a<V>(a, left, w * 16, s * 16);
            load_b<V>(b, right, block * 16, s * 16);
            mma(d[0], a, b[0], b[1]);
            mma(d[1], a, b[2], b[3]);
          }
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
          for (int e = 0; e < 4; e++) {
            const int i = w * 16 + g + (e >> 1) * 8, column = block * 16 + n * 8 + c + (e & 1);
            const bool is_inside = column < i || (column == i && !is_strict);
            d[n][e] = is_inside ? d[n][e] * factor : 0.0f;
            if (SCALAR && is_inside) d[n][e] *= decays.between(i, column);
          }
        store_tile<64>(to, w * 16, block * 16, d);
      }
    };
    const u16 *direct = m + (RULE == BETA ? L::n : L::v);
    masked(m + L::dy, direct, m + L::qk, p.scale, false);
    if (RULE != LINEAR) masked(m + L::r, direct, m + L::ak, RULE == BETA ? -1.0f : 1.0f, true);
    if (RULE == GENERAL) {
      masked(m + L::dy, m + L::n, m + L::qb, p.scale, false);
      masked(m + L::r, m + L::n, m + L::ab, 1.0f, true);
    }
  }
  __syncthreads();
  if (SCALAR) {
    scalar_gradients<RULE, K, V, E>(p, m, decays, key_row, key_stride, head_row, head_stride, rows, token,
                                    head);
    return;
  }

  Adjoint<RULE> x;
  x.q = m + L::raw_q;
  x.k = m + L::raw_k;
  x.a = m + L::raw_a;
  x.b = m + L::raw_b;
  x.exchange = (float *)(m + L::exchange + warp * 1280);
  x.block = w;
  x.half = half;
  x.pair = lane & 15;
  x.octet = lane >> 4;
  x.resets = resets >> (x.octet * 8) & 0xff;
  u16 *t = m + L::exchange, *t2 = t + 4096;
  u32 low[grams][4], up[grams][4];
#pragma unroll
  for (int i = 0; i < grams; i++) {
    const u16 *from = m + (i == 0 ? L::qk : i == 1 ? L::ak : i == 2 ? L::qb : L::ab);
    load_a<64>(low[i], from, w * 16, w * 16);
    load_a_t<64>(up[i], from, w * 16, w * 16);
  }

#pragma unroll 1
  for (int part = 0; part < K / 64; part++) {
    if (part || RULE == GENERAL) {
      if (part) {
        __syncthreads();
        load_rows<64>(m + L::raw_q, (const E *)p.q, key_row + part * 64, key_stride, rows, p.keys - part * 64, 256);
        load_rows<64>(m + L::raw_k, (const E *)p.k, key_row + part * 64, key_stride, rows, p.keys - part * 64, 256);
      }
      if (RULE == GENERAL) {
        load_rows<64>(m + L::raw_a, (const E *)p.a, head_row + part * 64, head_stride, rows, p.keys - part * 64, 256);
        load_rows<64>(m + L::raw_b, (const E *)p.b, head_row + part * 64, head_stride, rows, p.keys - part * 64, 256);
      }
      copy_commit();
    }
    add_carry(part);
    const int channel = part * 64 + half * 32 + x.pair * 2;
    load_decays(x.before, p, batch, head, start + w * 16 + x.octet * 8, channel, x.resets,
                scalar + w * 16 + x.octet * 8);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      x.dq[i] = x.dk[i] = x.dg[i] = {0.0f, 0.0f};
      x.after[i] = {1.0f, 1.0f};
      if (RULE == GENERAL) x.da[RULE == GENERAL ? i : 0] = x.db[RULE == GENERAL ? i : 0] = {0.0f, 0.0f};
    }
    copy_wait<0>();
    __syncthreads();

    block_level<RULE, 1, L>(x, m, low, up);
    widen8<1>(x.before, x.after);
    block_level<RULE, 2, L>(x, m, low, up);
    widen8<2>(x.before, x.after);
    block_level<RULE, 4, L>(x, m, low, up);
    widen8<4>(x.before, x.after);
    block_level<RULE, 8, L>(x, m, low, up);
    const two octet_total = {__shfl_xor_sync(0xffffffffu, x.before[7].x, 16),
                             __shfl_xor_sync(0xffffffffu, x.before[7].y, 16)};
    const two one = {1.0f, 1.0f};
    const two first = x.octet ? octet_total : one;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (x.octet)
        x.before[i] = times(x.before[i], octet_total);
      else
        x.after[i] = times(x.after[i], octet_total);
    }
    const int column = half * 32 + x.pair * 2;
    if (x.octet) *(two *)(total + w * 64 + column) = x.before[7];

    // Pairs of neighbouring blocks.
    float r1[4][4], r2[4][4];
    const auto put_level = [&](bool is_row, two outer) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < 8; i++)
        x.template put<64>(t, t2, w * 16 + x.octet * 8 + i, column, i, is_row,
                           times(is_row ? x.before[i] : x.after[i], outer),
                           times(i ? x.before[i ? i - 1 : 0] : first, outer));
      clear(r1);
      clear(r2);
      __syncthreads();
    };
    put_level(w & 1, one);
    two all[4];
#pragma unroll
    for (int i = 0; i < 4; i++) all[i] = *(const two *)(total + i * 64 + column);
    add_blocks<RULE, L>(r1, r2, m, w, w ^ 1, w & 1, t, t2, half * 32);
    __syncthreads();
    x.spread_block(r1, r2, w & 1, one, first);

    // Pairs of the chunk's halves.
    const two outer = w == 3 ? all[2] : w == 0 ? all[1] : one;
    put_level(w >= 2, outer);
    add_blocks<RULE, L>(r1, r2, m, w, w >= 2 ? 0 : 2, w >= 2, t, t2, half * 32);
    add_blocks<RULE, L>(r1, r2, m, w, w >= 2 ? 1 : 3, w >= 2, t, t2, half * 32);
    __syncthreads();
    const two far = x.spread_block(r1, r2, w >= 2, outer, first);
    if (x.octet) *(two *)(cross + w * 64 + column) = far;

    // Pairs with the state before and the state after the chunk.
    const auto state_product = [&](float(&r)[4][4], const u16 *left, const u16 *state, float factor) {
      clear(r);
#pragma unroll
      for (int s = 0; s < V / 16; s++) {
        u32 a[4];
        load_a<V>(a, left, w * 16, s * 16);
#pragma unroll
        for (int n = 0; n < 2; n++) {
          u32 b[4];
          load_b_t<K>(b, state, part * 64 + half * 32 + n * 16, s * 16);
          mma(r[n * 2], a, b[0], b[1]);
          mma(r[n * 2 + 1], a, b[2], b[3]);
        }
      }
#pragma unroll
      for (int n = 0; n < 4; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) r[n][e] *= factor;
    };
    two lead = one, tail = one;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i < w) lead = times(lead, all[i]);
      if (i > w) tail = times(tail, all[i]);
    }
    state_product(r1, m + L::dy, m + L::s, p.scale);
    if (RULE != LINEAR) state_product(r2, m + L::r, m + L::s, RULE == BETA ? -1.0f : 1.0f);
    const two back = x.spread_block(r1, r2, true, lead, first);
    state_product(r1, m + (RULE == BETA ? L::n : L::v), m + L::ds, 1.0f);
    if (RULE == GENERAL) state_product(r2, m + L::n, m + L::ds, 1.0f);
    const two ahead = x.spread_block(r1, r2, false, tail, first);
    if (x.octet) {
      *(two *)(cross + (4 + w) * 64 + column) = back;
      *(two *)(cross + (8 + w) * 64 + column) = ahead;
    }
    __syncthreads();
    // What crosses the whole block: pairs of other blocks, and the state carried through.
    two through = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < 8; i++) Adjoint<RULE>::add(through, *(const two *)(carries + i * 64 + column));
    through = times(through, times(times(all[0], all[1]), times(all[2], all[3])));
    const int partner = w == 2 ? 3 : w == 1 ? 0 : -1;
    if (partner >= 0) Adjoint<RULE>::add(through, *(const two *)(cross + partner * 64 + column));
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i > w) Adjoint<RULE>::add(through, *(const two *)(cross + (4 + i) * 64 + column));
      if (i < w) Adjoint<RULE>::add(through, *(const two *)(cross + (8 + i) * 64 + column));
    }

    // Each token with itself, and out.
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int row = w * 16 + x.octet * 8 + i;
      const two query = x.value(x.query(i)), key = x.value(x.key(i));
      const float self = lowest_bits((u32)(m + L::qk)[at<64>(row, row)] << 16);
      Adjoint<RULE>::add(x.dq[i], times(key, {self, self}));
      Adjoint<RULE>::add(x.dk[i], times(query, {self, self}));
      if (RULE == GENERAL) {
        const float writes = lowest_bits((u32)(m + L::qb)[at<64>(row, row)] << 16);
        Adjoint<RULE>::add(x.dq[i], times(x.value(x.write(i)), {writes, writes}));
        Adjoint<RULE>::add(x.db[RULE == GENERAL ? i : 0], times(query, {writes, writes}));
      }
      Adjoint<RULE>::add(x.dg[i], through);
      const long long to = head_row + row * head_stride + channel;
      if (row < rows && channel < p.keys) {
        store_two((E *)p.dq, to, x.dq[i].x, x.dq[i].y);
        store_two((E *)p.dk, to, x.dk[i].x, x.dk[i].y);
        if (RULE == GENERAL) {
          store_two((E *)p.da, to, x.da[RULE == GENERAL ? i : 0].x, x.da[RULE == GENERAL ? i : 0].y);
          store_two((E *)p.db, to, x.db[RULE == GENERAL ? i : 0].x, x.db[RULE == GENERAL ? i : 0].y);
        }
        if (p.gate_kind == 3 && p.d_gate) {
          if (p.gate_is_float)
            store_two((float *)p.d_gate, to, x.dg[i].x, x.dg[i].y);
          else
            store_two((bf16 *)p.d_gate, to, x.dg[i].x, x.dg[i].y);
        }
      }
      if (p.gate_kind == 1 || p.gate_kind == 2) {
        float sum = channel < p.keys ? x.dg[i].x + x.dg[i].y : 0.0f;
#pragma unroll
        for (int s = 1; s < 16; s *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, s);
        if (x.pair == 0) sums[half * 64 + row] += sum;
      }
    }
  }
  if (p.d_gate && (p.gate_kind == 1 || p.gate_kind == 2)) {
    __syncthreads();
    if (threadIdx.x < rows)
      ((float *)p.d_gate)[(token + threadIdx.x) * p.heads + head] = sums[threadIdx.x] + sums[64 + threadIdx.x];
  }
}
