// Causal softmax attention by tiles for Hopper: bfloat16, heads of up to 64 or 128 channels, windows,
// documents, grouped heads. Scores come from wgmma, their probabilities go from registers into the next;
// the scores of a tile are formed while the values of the one before are summed, and exponentials of
// one group of warps hide behind products of another.
// Variants: SIZE=64,128
#include "attention_tiles.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// Softmax of two rows as their tiles come: the largest score and a thread's part of the sum.
struct RunningSoftmax {
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
  /// Scores to probabilities under the largest so far; what was summed before counts `factor` times.
  template <int N>
  DEV_MEMBER void step(float (&s)[N][4], float (&factor)[2], float scale) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float high = top[r];
#pragma unroll
      for (int n = 0; n < N; n++) high = fmaxf(high, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
      high = fmaxf(high, __shfl_xor_sync(~0u, high, 1));
      high = fmaxf(high, __shfl_xor_sync(~0u, high, 2));
      const float base = high == -INFINITY ? 0.f : high * scale;
      factor[r] = exp2_of(top[r] * scale - base);
      top[r] = high;
      float part = 0.f;
#pragma unroll
      for (int n = 0; n < N; n++) {
        s[n][2 * r] = exp2_of(s[n][2 * r] * scale - base);
        s[n][2 * r + 1] = exp2_of(s[n][2 * r + 1] * scale - base);
        part += s[n][2 * r] + s[n][2 * r + 1];
      }
      sum[r] = sum[r] * factor[r] + part;
    }
  }
};

#define FORWARD_KEYS 128
#define FORWARD_TILE (PANELS * 2 * PANEL)  // of keys or values
TILES_KERNEL(GYRE_TILES_FORWARD_GROUPS(SIZE)) attention_tiles_forward(const __grid_constant__ TileArgs t) {
  constexpr int GROUPS = GYRE_TILES_FORWARD_GROUPS(SIZE), N = FORWARD_KEYS / 8;
  constexpr int STAGES = GYRE_TILES_FORWARD_STAGES(SIZE);
  SHARED(raw);
  const gyre_attention_args &a = t.a;
  u16 *q = first_panel(raw), *k = q + GROUPS * PANELS * PANEL, *v = k + STAGES * FORWARD_TILE;
  u64 *q_full = (u64 *)(v + STAGES * FORWARD_TILE), *q_empty = q_full + 1, *k_full = q_full + 2;
  u64 *k_empty = k_full + STAGES, *v_full = k_empty + STAGES, *v_empty = v_full + STAGES;
  int *drawn = (int *)(v_empty + STAGES);
  const int group = threadIdx.x >> 7, lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3;
  const int count = query_items(a, GROUPS * 64);
  if (threadIdx.x == 0) {
    barrier_init(q_full, 1);
    barrier_init(q_empty, 4 * GROUPS);
    for (int s = 0; s < STAGES; s++) {
      barrier_init(k_full + s, 1);
      barrier_init(k_empty + s, 4 * GROUPS);
      barrier_init(v_full + s, 1);
      barrier_init(v_empty + s, 4 * GROUPS);
    }
    barrier_fence();
  }
  __syncthreads();
  if (group == GROUPS) {
    budget_to_copy<GROUPS>();
    if (warp == 0 && lane == 0) {
      Ring ring;
      u32 parity = 0;
      for (int item, next = draw(t.drawn); (item = next) < count; parity ^= 1) {
        next = draw(t.drawn);
        const QueryBlock w(t, item, GROUPS * 64, FORWARD_KEYS);
        for (int n = w.tiles - 1; n >= 0; n--) {
          const int j = (w.first_tile + n) * FORWARD_KEYS, s = ring.stage;
          barrier_wait(k_empty + s, ring.parity ^ 1);
          barrier_expect(k_full + s, FORWARD_TILE * 2);
          load_rows<2>(k + s * FORWARD_TILE, t.k, w.key_head, j, w.b, k_full + s);
          if (n == w.tiles - 1) {
            barrier_wait(q_empty, parity ^ 1);
            *drawn = item;
            barrier_expect(q_full, GROUPS * PANELS * PANEL * 2);
            for (int g = 0; g < GROUPS; g++)
              load_rows<1>(q + g * PANELS * PANEL, t.q, w.h, w.start + g * 64, w.b, q_full);
          }
          barrier_wait(v_empty + s, ring.parity ^ 1);
          barrier_expect(v_full + s, FORWARD_TILE * 2);
          load_rows<2>(v + s * FORWARD_TILE, t.v, w.key_head, j, w.b, v_full + s);
          ring.advance<STAGES>();
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
  const u64 keys = panel_operand(k), values = panel_operand(v, 2 * PANEL * 2);
  constexpr int STEP = FORWARD_TILE * 2 >> 4;
  Ring ring;
  for (u32 parity = 0;; parity ^= 1) {
    barrier_wait(q_full, parity);
    const int item = *drawn;
    if (item < 0) break;
    const QueryBlock w(t, item, GROUPS * 64, FORWARD_KEYS);
    const QueryRows rows(a, w, w.start + group * 64 + warp * 16);
    RunningSoftmax softmax;
    float s[N][4], out[SIZE / 8][4], factor[2];
    u32 p[N / 2][4];
    clear(out);
    int j = (w.first_tile + w.tiles - 1) * FORWARD_KEYS;
    barrier_wait(k_full + ring.stage, ring.parity);
    wgmma_fence();
    rows_by_rows<2>(s, queries, keys + ring.stage * STEP);
    wgmma_commit();
    wgmma_wait<0>();
    pin(s);
    if (lane == 0) barrier_arrive(k_empty + ring.stage);
    rows.hide(s, j);
    softmax.step(s, factor, scale);
    pack_weights(p, s);
    for (int n = 1; n < w.tiles; n++) {
      const Ring before = ring;
      ring.advance<STAGES>();
      j -= FORWARD_KEYS;
      barrier_wait(k_full + ring.stage, ring.parity);
      pin(s);
      wgmma_fence();
      rows_by_rows<2>(s, queries, keys + ring.stage * STEP);
      wgmma_commit();
      barrier_wait(v_full + before.stage, before.parity);
      pin(out);
      wgmma_fence();
      weights_by_rows(out, p, values + before.stage * STEP);
      wgmma_commit();
      wgmma_wait<1>();
      pin(s);
      if (lane == 0) barrier_arrive(k_empty + ring.stage);
      rows.hide(s, j);
      softmax.step(s, factor, scale);
      wgmma_wait<0>();
      pin(out);
      hold(p);
      if (lane == 0) barrier_arrive(v_empty + before.stage);
#pragma unroll
      for (int c = 0; c < SIZE / 8; c++) {
#pragma unroll
        for (int e = 0; e < 4; e++) out[c][e] *= factor[e >> 1];
      }
      pack_weights(p, s);
    }
    if (lane == 0) barrier_arrive(q_empty);
    barrier_wait(v_full + ring.stage, ring.parity);
    pin(out);
    wgmma_fence();
    weights_by_rows(out, p, values + ring.stage * STEP);
    wgmma_commit();
    wgmma_wait<0>();
    pin(out);
    hold(p);
    if (lane == 0) barrier_arrive(v_empty + ring.stage);
    ring.advance<STAGES>();
    long at[2];
    bool exists[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
      float sum = softmax.sum[r];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      factor[r] = 1.f / sum;
      exists[r] = rows.query[r] < a.queries;
      at[r] = ((long)w.b * a.queries + rows.query[r]) * a.heads + w.h;
      if (present(a.sums) && exists[r] && (lane & 3) == 0)
        store(a.sums, at[r], softmax.top[r] * a.scale + logf(sum));
      at[r] *= a.value_size;
    }
    write_rows(a.y, at, exists, out, factor, (int)a.value_size);
  }
}

#endif
