// Gradients of attention by tiles (attention_tiles.cu), with the scores made again twice: once a block
// of queries over its keys, once a block of keys over its queries. Seven products instead of five, but
// no sum has more than one order, and probabilities never leave registers.
// Variants: SIZE=64,128
#include "attention_tiles.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

#define LANES (SIZE / 8)  // that share a row
// exponents, means and low of each query, in the order in which the other kernels read them.
extern "C" __global__ void __launch_bounds__(256) attention_tiles_rows(
    const __grid_constant__ TileArgs t) {
  const gyre_attention_args &a = t.a;
  const int row = (int)(blockIdx.x * 256 + threadIdx.x) / LANES, heads = (int)a.heads;
  const int lane = threadIdx.x % LANES, b = blockIdx.y;
  if (blockIdx.x == 0 && b == 0 && threadIdx.x == 0) t.drawn[1] = t.drawn[2] = 0;
  if (row >= t.padded * heads) return;
  const int h = row % heads, i = row / heads;
  const long from = ((long)b * a.queries + i) * heads + h;
  float mean = 0.f;
  if (i < a.queries && lane * 8 < a.value_size) {
    float x[8], y[8];
    get8<true>(a.dy, from * a.value_size + lane * 8, x);
    get8<true>(a.y, from * a.value_size + lane * 8, y);
#pragma unroll
    for (int c = 0; c < 8; c++) mean += x[c] * y[c];
  }
#pragma unroll
  for (int o = LANES / 2; o; o >>= 1) mean += __shfl_xor_sync(~0u, mean, o);
  if (lane) return;
  const long to = ((long)b * heads + h) * t.padded + i;
  t.exponents[to] = i < a.queries ? load(a.sums, from) * 1.4426950408889634f : INFINITY;
  t.means[to] = mean;
  const int last = i < a.queries ? i : (int)a.queries - 1;
  t.low[to] = first_seen(a, b, h, (int)(a.keys - a.queries) + last);
}

// dQ of a block of queries: dS K over the tiles of keys.
#define QUERY_KEYS 64
#define QUERY_TILE (PANELS * PANEL)
TILES_KERNEL(GYRE_TILES_QUERY_GROUPS(SIZE)) attention_tiles_queries(const __grid_constant__ TileArgs t) {
  constexpr int GROUPS = GYRE_TILES_QUERY_GROUPS(SIZE), N = QUERY_KEYS / 8;
  constexpr int STAGES = GYRE_TILES_QUERY_STAGES(SIZE);
  SHARED(raw);
  const gyre_attention_args &a = t.a;
  u16 *q = first_panel(raw), *dy = q + GROUPS * PANELS * PANEL;
  u16 *k = dy + GROUPS * PANELS * PANEL, *v = k + STAGES * QUERY_TILE;
  u64 *q_full = (u64 *)(v + STAGES * QUERY_TILE), *q_empty = q_full + 1;
  u64 *full = q_full + 2, *empty = full + STAGES;
  int *drawn = (int *)(empty + STAGES);
  const int group = threadIdx.x >> 7, lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3;
  const int count = query_items(a, GROUPS * 64);
  if (threadIdx.x == 0) {
    barrier_init(q_full, 1);
    barrier_init(q_empty, 4 * GROUPS);
    for (int s = 0; s < STAGES; s++) {
      barrier_init(full + s, 1);
      barrier_init(empty + s, 4 * GROUPS);
    }
    barrier_fence();
  }
  __syncthreads();
  if (group == GROUPS) {
    budget_to_copy<GROUPS>();
    if (warp == 0 && lane == 0) {
      Ring ring;
      u32 parity = 0;
      for (int item, next = draw(t.drawn + 2); (item = next) < count; parity ^= 1) {
        next = draw(t.drawn + 2);
        const QueryBlock w(t, item, GROUPS * 64, QUERY_KEYS);
        for (int n = 0; n < w.tiles; n++) {
          const int j = (w.first_tile + n) * QUERY_KEYS, s = ring.stage;
          barrier_wait(empty + s, ring.parity ^ 1);
          barrier_expect(full + s, QUERY_TILE * 4);
          load_rows<1>(k + s * QUERY_TILE, t.k, w.key_head, j, w.b, full + s);
          load_rows<1>(v + s * QUERY_TILE, t.v, w.key_head, j, w.b, full + s);
          ring.advance<STAGES>();
          if (n) continue;
          barrier_wait(q_empty, parity ^ 1);
          *drawn = item;
          barrier_expect(q_full, GROUPS * PANELS * PANEL * 4);
          for (int g = 0; g < GROUPS; g++) {
            const int row = w.start + g * 64;
            load_rows<1>(q + g * PANELS * PANEL, t.q, w.h, row, w.b, q_full);
            load_rows<1>(dy + g * PANELS * PANEL, t.dy, w.h, row, w.b, q_full);
          }
        }
      }
      barrier_wait(q_empty, parity ^ 1);
      *drawn = -1;
      barrier_arrive(q_full);
    }
    return;
  }
  budget_to_multiply<GROUPS>();
  const float scale = a.scale * 1.4426950408889634f;
  const u64 queries = panel_operand(q + group * PANELS * PANEL);
  const u64 slopes = panel_operand(dy + group * PANELS * PANEL);
  const u64 keys = panel_operand(k), values = panel_operand(v);
  const u64 summed = panel_operand(k, PANEL * 2);
  constexpr int STEP = QUERY_TILE * 2 >> 4;
  Ring ring;
  for (u32 parity = 0;; parity ^= 1) {
    barrier_wait(q_full, parity);
    const int item = *drawn;
    if (item < 0) break;
    const QueryBlock w(t, item, GROUPS * 64, QUERY_KEYS);
    const QueryRows rows(a, w, w.start + group * 64 + warp * 16);
    float dq[SIZE / 8][4], exponent[2], mean[2];
    clear(dq);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const bool exists = rows.query[r] < a.queries;
      const long at = ((long)w.b * a.heads + w.h) * t.padded + rows.query[r];
      exponent[r] = exists ? t.exponents[at] : INFINITY;
      mean[r] = exists ? t.means[at] : 0.f;
    }
    int before = -1;
    u32 p[N / 2][4] = {};
    for (int n = 0; n < w.tiles; n++) {
      float s[N][4], d[N][4];
      barrier_wait(full + ring.stage, ring.parity);
      wgmma_fence();
      rows_by_rows<1>(s, queries, keys + ring.stage * STEP);
      wgmma_commit();
      rows_by_rows<1>(d, slopes, values + ring.stage * STEP);
      wgmma_commit();
      wgmma_wait<1>();
      pin(s);
      pin(dq);
      hold(p);
      if (lane == 0 && before >= 0) barrier_arrive(empty + before);
      before = ring.stage;
      rows.hide(s, (w.first_tile + n) * QUERY_KEYS);
#pragma unroll
      for (int c = 0; c < N; c++) {
#pragma unroll
        for (int e = 0; e < 4; e++) s[c][e] = exp2_of(s[c][e] * scale - exponent[e >> 1]);
      }
      wgmma_wait<0>();
      pin(d);
#pragma unroll
      for (int c = 0; c < N; c++) {
#pragma unroll
        for (int e = 0; e < 4; e++) s[c][e] *= d[c][e] - mean[e >> 1];
      }
      pack_weights(p, s);
      pin(dq);
      wgmma_fence();
      weights_by_rows(dq, p, summed + ring.stage * STEP);
      wgmma_commit();
      ring.advance<STAGES>();
    }
    if (lane == 0) barrier_arrive(q_empty);
    wgmma_wait<0>();
    pin(dq);
    hold(p);
    if (lane == 0 && before >= 0) barrier_arrive(empty + before);
    long at[2];
    bool exists[2];
    const float factor[2] = {a.scale, a.scale};
#pragma unroll
    for (int r = 0; r < 2; r++) {
      exists[r] = rows.query[r] < a.queries;
      at[r] = (((long)w.b * a.queries + rows.query[r]) * a.heads + w.h) * a.key_size;
    }
    write_rows(a.dq, at, exists, dq, factor, (int)a.key_size);
  }
}

/// An item of `height` keys of one head of keys; the queries of a head that see some of them.
struct KeyBlock {
  int b, key_head, start, past, first_tile;
  DEV_MEMBER KeyBlock(const TileArgs &t, int item, int height) {
    const gyre_attention_args &a = t.a;
    const int blocks = ((int)a.keys + height - 1) / height;
    int block, row;
    split(item, t.section, (int)(a.batch * a.key_heads), blocks, block, row);
    b = row / (int)a.key_heads;
    key_head = row % (int)a.key_heads;
    past = (int)(a.keys - a.queries);
    start = block * height;
    first_tile = start > past ? (start - past) / 64 : 0;
  }
  /// Tiles of 64 queries of head h: until the first that sees only later keys. By a whole warp.
  DEV_MEMBER int tiles(const TileArgs &t, int h, int height) const {
    const int all = t.padded / 64;
    if (!t.a.window && !t.a.first) return all - first_tile;
    const int *low = t.low + ((long)b * t.a.heads + h) * t.padded;
    for (int tile = first_tile; tile < all; tile += 32) {
      const int mine = tile + (int)(threadIdx.x & 31);
      const u32 beyond = __ballot_sync(~0u, mine >= all || low[mine * 64] >= start + height);
      if (beyond) return tile + __ffs(beyond) - 1 - first_tile;
    }
    return all - first_tile;
  }
};

// dK and dV of a block of keys: P' dY and dS' Q over the queries of all heads that share it. Scores are
// turned, [key][query].
#define KEY_TILE (PANELS * PANEL)
TILES_KERNEL(GYRE_TILES_KEY_GROUPS(SIZE)) attention_tiles_keys(const __grid_constant__ TileArgs t) {
  constexpr int GROUPS = GYRE_TILES_KEY_GROUPS(SIZE), HEIGHT = GROUPS * 64;
  constexpr int STAGES = GYRE_TILES_KEY_STAGES(SIZE);
  // Where registers are left the sums of a tile end while the scores of the next are formed.
  constexpr bool OVERLAP = SIZE == 64;
  SHARED(raw);
  const gyre_attention_args &a = t.a;
  u16 *k = first_panel(raw), *v = k + GROUPS * KEY_TILE, *q = v + GROUPS * KEY_TILE;
  u16 *dy = q + STAGES * KEY_TILE;
  float *exponents = (float *)(dy + STAGES * KEY_TILE), *means = exponents + STAGES * 64;
  int *low = (int *)(means + STAGES * 64);
  u64 *k_full = (u64 *)(low + STAGES * 64), *k_empty = k_full + 1, *full = k_full + 2;
  u64 *empty = full + STAGES;
  int *drawn = (int *)(empty + STAGES);
  const int group = threadIdx.x >> 7, lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3;
  const int members = (int)(a.heads / a.key_heads);
  const int count = (int)((a.keys + HEIGHT - 1) / HEIGHT * a.batch * a.key_heads);
  if (threadIdx.x == 0) {
    barrier_init(k_full, 1);
    barrier_init(k_empty, 4 * GROUPS);
    for (int s = 0; s < STAGES; s++) {
      barrier_init(full + s, 1);
      barrier_init(empty + s, 4 * GROUPS);
    }
    barrier_fence();
  }
  __syncthreads();
  if (group == GROUPS) {
    budget_to_copy<GROUPS>();
    if (warp == 0) {
      Ring ring;
      u32 parity = 0;
      int next = lane == 0 ? draw(t.drawn + 1) : 0;
      for (int item; (item = __shfl_sync(~0u, next, 0)) < count; parity ^= 1) {
        const KeyBlock w(t, item, HEIGHT);
        if (lane == 0) {
          next = draw(t.drawn + 1);
          barrier_wait(k_empty, parity ^ 1);
          *drawn = item;
          barrier_expect(k_full, GROUPS * KEY_TILE * 4);
          for (int g = 0; g < GROUPS; g++) {
            const int row = w.start + g * 64;
            load_rows<1>(k + g * KEY_TILE, t.k, w.key_head, row, w.b, k_full);
            load_rows<1>(v + g * KEY_TILE, t.v, w.key_head, row, w.b, k_full);
          }
        }
        for (int member = 0; member < members; member++) {
          const int h = w.key_head * members + member, tiles = w.tiles(t, h, HEIGHT);
          const long row = ((long)w.b * a.heads + h) * t.padded;
          for (int n = 0; lane == 0 && n < tiles; n++) {
            const int i = (w.first_tile + n) * 64, s = ring.stage;
            barrier_wait(empty + s, ring.parity ^ 1);
            barrier_expect(full + s, KEY_TILE * 4 + 3 * 256);
            load_rows<1>(q + s * KEY_TILE, t.q, h, i, w.b, full + s);
            load_rows<1>(dy + s * KEY_TILE, t.dy, h, i, w.b, full + s);
            load_bytes(exponents + s * 64, t.exponents + row + i, 256, full + s);
            load_bytes(means + s * 64, t.means + row + i, 256, full + s);
            load_bytes(low + s * 64, t.low + row + i, 256, full + s);
            ring.advance<STAGES>();
          }
          __syncwarp();
        }
      }
      if (lane == 0) {
        barrier_wait(k_empty, parity ^ 1);
        *drawn = -1;
        barrier_arrive(k_full);
      }
    }
    return;
  }
  budget_to_multiply<GROUPS>();
  const float scale = a.scale * 1.4426950408889634f;
  const bool bounded = a.window || a.first;
  const u64 keys = panel_operand(k + group * KEY_TILE), values = panel_operand(v + group * KEY_TILE);
  const u64 queries = panel_operand(q, PANEL * 2), slopes = panel_operand(dy, PANEL * 2);
  constexpr int STEP = KEY_TILE * 2 >> 4;
  Ring ring;
  for (u32 parity = 0;; parity ^= 1) {
    barrier_wait(k_full, parity);
    const int item = *drawn;
    if (item < 0) break;
    const KeyBlock w(t, item, HEIGHT);
    const int first_key = w.start + group * 64 + warp * 16;
    const int key[2] = {first_key + (lane >> 2), first_key + (lane >> 2) + 8};
    float dk[SIZE / 8][4], dv[SIZE / 8][4];
    clear(dk);
    clear(dv);
    int before = -1;
    u32 p[4][4] = {}, ds[4][4] = {};
    for (int member = 0; member < members; member++) {
      const int tiles = w.tiles(t, w.key_head * members + member, HEIGHT);
      for (int n = 0; n < tiles; n++) {
        const int i = (w.first_tile + n) * 64, stage = ring.stage;
        float s[8][4], d[8][4];
        barrier_wait(full + stage, ring.parity);
        wgmma_fence();
        rows_by_rows<1>(s, keys, queries + stage * STEP);
        wgmma_commit();
        rows_by_rows<1>(d, values, slopes + stage * STEP);
        wgmma_commit();
        wgmma_wait<1>();
        pin(s);
        if (OVERLAP) {
          pin(dk);
          pin(dv);
          hold(p);
          hold(ds);
          if (lane == 0 && before >= 0) barrier_arrive(empty + before);
          before = stage;
        }
        const int *lows = low + stage * 64;
        if (first_key + 15 > w.past + i || (bounded && lows[63] > first_key)) {
#pragma unroll
          for (int c = 0; c < 8; c++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
              const int query = c * 8 + (lane & 3) * 2 + (e & 1);
              const bool hidden = key[e >> 1] > w.past + i + query || key[e >> 1] < lows[query];
              s[c][e] = hidden ? -INFINITY : s[c][e];
            }
          }
        }
#pragma unroll
        for (int c = 0; c < 8; c++) {
          const float2 exponent = *(const float2 *)(exponents + stage * 64 + c * 8 + (lane & 3) * 2);
#pragma unroll
          for (int e = 0; e < 4; e++)
            s[c][e] = exp2_of(s[c][e] * scale - (e & 1 ? exponent.y : exponent.x));
        }
        if (OVERLAP) pack_weights(p, s);
        wgmma_wait<0>();
        pin(d);
#pragma unroll
        for (int c = 0; c < 8; c++) {
          const float2 mean = *(const float2 *)(means + stage * 64 + c * 8 + (lane & 3) * 2);
#pragma unroll
          for (int e = 0; e < 4; e++) d[c][e] = s[c][e] * (d[c][e] - (e & 1 ? mean.y : mean.x));
        }
        if (!OVERLAP) pack_weights(p, s);
        pack_weights(ds, d);
        pin(dk);
        pin(dv);
        wgmma_fence();
        weights_by_rows(dv, p, slopes + stage * STEP);
        weights_by_rows(dk, ds, queries + stage * STEP);
        wgmma_commit();
        if (!OVERLAP) {
          wgmma_wait<0>();
          pin(dk);
          pin(dv);
          hold(p);
          hold(ds);
          if (lane == 0) barrier_arrive(empty + stage);
        }
        ring.advance<STAGES>();
      }
    }
    if (lane == 0) barrier_arrive(k_empty);
    wgmma_wait<0>();
    pin(dk);
    pin(dv);
    hold(p);
    hold(ds);
    if (OVERLAP && lane == 0 && before >= 0) barrier_arrive(empty + before);
    long at[2];
    bool exists[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      exists[r] = key[r] < a.keys;
      at[r] = (((long)w.b * a.keys + key[r]) * a.key_heads + w.key_head) * a.key_size;
    }
    const float factor[2] = {a.scale, a.scale}, one[2] = {1.f, 1.f};
    write_rows(a.dk, at, exists, dk, factor, (int)a.key_size);
#pragma unroll
    for (int r = 0; r < 2; r++)
      at[r] = (((long)w.b * a.keys + key[r]) * a.key_heads + w.key_head) * a.value_size;
    write_rows(a.dv, at, exists, dv, one, (int)a.value_size);
  }
}

#endif
