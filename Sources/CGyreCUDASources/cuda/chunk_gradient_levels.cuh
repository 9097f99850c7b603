// The gradient's last stage where channels have decays of their own: the adjoint of the hierarchy
// of halves, for rows, columns and log decays.
#pragma once
#include "chunk_gradient_layout.cuh"

/// A warp's view of 16 tokens and 32 of a part's 64 channels; a lane holds two channels of 8
/// tokens.
template <int RULE>
struct Adjoint {
  const u16 *q, *k, *a, *b;  // raw tiles of 64 columns
  float *exchange;           // the warp's [16][40]
  int block, half;           // which 16 tokens, which 32 channels
  int pair, octet;
  u32 resets;  // of this lane's 8 tokens
  two before[8], after[8];
  two dq[8], dk[8], da[RULE == GENERAL ? 8 : 1], db[RULE == GENERAL ? 8 : 1], dg[8];

  DEV_MEMBER int place(int i) const {
    return at<64>(block * 16 + octet * 8 + i, half * 32 + pair * 2);
  }
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
      *(u32 *)(x2 + at<W>(row, column)) =
          is_row ? scaled(erase(i), exclusive) : scaled(write(i), inclusive);
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

  /// What row i gets as a later token: to dq and the erase row; returns its share of the pairs
  /// through token i, and through the tokens before i only.
  DEV_MEMBER void later(int i, two r1, two r2, two inclusive, two exclusive, two &through,
                        two &past) {
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
        later(i, x[i], y[i], before[i], i & (L - 1) ? before[i ? i - 1 : 0] : two{1.0f, 1.0f},
              through, past);
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

  /// The same for products that cover the whole block; factors as given, `first` the exclusive one
  /// of the lane's first token. Returns the sum over the block: what crosses other blocks.
  DEV_MEMBER two spread_block(const float (&r1)[4][4], const float (&r2)[4][4], bool is_row,
                              two outer, two first) {
    two x[8], y[8], run = {0.0f, 0.0f};
    turn(x, r1);
    if (RULE != LINEAR) turn(y, r2);
    two local[8];
    if (is_row) {
#pragma unroll
      for (int n = 0; n < 8; n++) {
        const int i = 7 - n;
        two through, past;
        later(i, x[i], y[i], times(before[i], outer),
              times(i ? before[i ? i - 1 : 0] : first, outer), through, past);
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
    const two other = {__shfl_xor_sync(0xffffffffu, run.x, 16),
                       __shfl_xor_sync(0xffffffffu, run.y, 16)};
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
DEV void block_level(Adjoint<RULE> &x, const u16 *m,
                     const u32 (&low)[RULE == LINEAR ? 1
                                      : RULE == BETA ? 2
                                                     : 4][4],
                     const u32 (&up)[RULE == LINEAR ? 1
                                     : RULE == BETA ? 2
                                                    : 4][4]) {
  const int lane = threadIdx.x & 31, g = lane >> 2, c = (lane & 3) * 2;
  u16 *t = (u16 *)x.exchange, *t2 = t + 512;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const bool is_row = LEVEL == 8 ? x.octet == 1 : (i & LEVEL) != 0;
    x.template put<32>(t, t2, x.octet * 8 + i, x.pair * 2, i, is_row,
                       is_row ? x.before[i] : x.after[i],
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
    constexpr int ak = RULE == GENERAL ? 1 : 0, qb = RULE == GENERAL ? 2 : 0,
                  ab = RULE == GENERAL ? 3 : 0;
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
