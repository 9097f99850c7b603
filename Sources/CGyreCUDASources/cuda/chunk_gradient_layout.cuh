// What the parts of the gradient kernel share: its shared memory, a kept state's tile, a product.
#pragma once
#include "chunk_common.cuh"

/// In 16-bit elements. Of the delta rule v is what tokens wrote, then N; and the tiles of the first stage
/// are but T, which dA_qk follows. SCALAR: the states stay in registers, and q and k come whole.
template <int RULE, int K, int V, bool SCALAR = false>
struct GradientLayout {
  typedef Record<RULE, K> R;
  static constexpr int state = SCALAR ? 0 : V * K, raw = SCALAR ? 64 * K : 4096;
  static constexpr int v = 0, dy = v + 64 * V, s = dy + 64 * V, ds = s + state;
  // Tiles of the first stage, later the results'.
  static constexpr int stage = ds + state;
  static constexpr int p = stage, kt = p + 4096, w = kt + 64 * K;
  static constexpr int b = w + (RULE == GENERAL ? 64 * K : 0);
  static constexpr int after_b = b + (RULE == GENERAL ? 64 * K : 0);
  static constexpr int t = RULE == BETA ? stage + 64 * V : after_b;
  static constexpr int m = t + (RULE == LINEAR ? 0 : 4096),
                       qb_tile = m + (RULE == GENERAL ? 4096 : 0);
  static constexpr int stage_end = qb_tile + (RULE == GENERAL ? 4096 : 0);
  static constexpr int n = RULE == BETA ? v : stage;
  static constexpr int r = stage + (RULE == GENERAL ? 64 * V : 0);
  static constexpr int qk = r + (RULE == LINEAR ? 0 : 64 * V);
  static constexpr int ak = qk + 4096, qb = ak + (RULE == LINEAR ? 0 : 4096);
  static constexpr int ab = qb + (RULE == GENERAL ? 4096 : 0);
  static constexpr int raw_a = ab + (RULE == GENERAL ? 4096 : 0);
  static constexpr int raw_b = raw_a + (RULE == GENERAL ? 4096 : 0);
  static constexpr int result_end = raw_b + (RULE == GENERAL ? 4096 : 0);
  static constexpr int raw_q = stage_end > result_end ? stage_end : result_end;
  static constexpr int raw_k = raw_q + raw;
  static constexpr int exchange = raw_k + raw;  // 8 warps × 1280: level tiles, or float [16][40]
  static constexpr int total = exchange + (SCALAR ? 0 : 8 * 1280);  // float [4][64], or ScalarDecays
  static constexpr int cross = total + 640;                         // float [4][4][64]
  static constexpr int carry = cross + 2048;         // float [8][64]
  static constexpr int sums = carry + 1024;          // float [2][64]
  static constexpr int beta = sums + 256, scalar = beta + 128,
                       strength = scalar + 128;  // float [2][64]
  static constexpr int bytes = (strength + 256) * 2;
};

/// A kept state on its way from the walk's order to a [V, K] tile: fetched early, put later.
template <int K, int V, int THREADS = 256>
struct KeptState {
  static constexpr int pieces = V / 16 * (K / 16) * 32 / THREADS;
  uint4 piece[pieces];

  DEV_MEMBER void fetch(const void *kept, long long chunk, int values) {
    const int blocks = (values + 15) / 16;
    const uint4 *from = (const uint4 *)kept + chunk * blocks * (K / 16) * 32;
#pragma unroll
    for (int n = 0; n < pieces; n++) {
      const int i = threadIdx.x + n * THREADS;
      piece[n] = {0, 0, 0, 0};
      if ((i >> 5) / (K / 16) < blocks) piece[n] = from[i];
    }
  }
  DEV_MEMBER void put(u16 *tile) const {
#pragma unroll
    for (int n = 0; n < pieces; n++) {
      const int i = threadIdx.x + n * THREADS, lane = i & 31;
      const int row = (i >> 5) / (K / 16) * 16 + (lane >> 2);
      const int column = (i >> 5) % (K / 16) * 16 + (lane & 3) * 2;
      *(u32 *)(tile + at<K>(row, column)) = piece[n].x;
      *(u32 *)(tile + at<K>(row + 8, column)) = piece[n].y;
      *(u32 *)(tile + at<K>(row, column + 8)) = piece[n].z;
      *(u32 *)(tile + at<K>(row + 8, column + 8)) = piece[n].w;
    }
  }
};

/// A warp's 16 columns of a kept state, as the walk's lanes held them: fetched DEPTH pieces of 16 values ahead.
template <int K, int V>
struct KeptColumns {
  enum { DEPTH = 4 };
  const uint4 *from;
  int blocks;
  uint4 piece[DEPTH];

  DEV_MEMBER void begin(const void *kept, long long chunk, int values, int column) {
    blocks = (values + 15) / 16;
    from = (const uint4 *)kept + (chunk * blocks * (K / 16) + column / 16) * 32 + (threadIdx.x & 31);
#pragma unroll
    for (int i = 0; i < DEPTH; i++) piece[i] = get(i);
  }
  DEV_MEMBER uint4 get(int i) const {
    uint4 x = {0, 0, 0, 0};
    if (i < V / 16 && i < blocks) x = from[i * (K / 16) * 32];
    return x;
  }
  /// The operand [value, key] of 16 values, in their order; fetches ahead.
  DEV_MEMBER void next(u32 (&b)[4], int i) {
    uint4 &x = piece[i % DEPTH];
    b[0] = turned(x.x);
    b[1] = turned(x.y);
    b[2] = turned(x.z);
    b[3] = turned(x.w);
    x = get(i + DEPTH);
  }
  /// The sum of products with another state, over this warp's columns.
  DEV_MEMBER float times(const KeptColumns &other) const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < V / 16; i++) {
      const uint4 x = get(i), y = other.get(i);
      const u32 a[4] = {x.x, x.y, x.z, x.w}, b[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int e = 0; e < 4; e++) sum += low_of(a[e]) * low_of(b[e]) + high_of(a[e]) * high_of(b[e]);
    }
    return sum;
  }
};

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
