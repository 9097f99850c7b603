// The delta rules' walk for Hopper: what delta_tiles.cuh says, forward. With few heads and many tokens in segments of
// chunks side by side: what each adds to a state and, of those between, what becomes of a state that enters it (the
// same walk from the identity without values); states folded over segments; outputs from these.
// Variants: GYRE_KEYS=64,128
#include "delta_tiles.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// Whole walks and those of segments write outputs; the others only make states.
enum DeltaPart { OUTPUTS, STATES };

/// GROUPS of 64 value columns.
template <int RULE, int SOURCE, int K, int GROUPS, int PART>
struct DeltaWalkLayout {
  static constexpr bool has_outputs = PART == OUTPUTS, has_indirect = RULE == GENERAL;
  static constexpr bool is_raw = SOURCE == RAW;
  static constexpr int groups = GROUPS, threads = GROUPS == 2 ? 384 : 160, tile = K * 128;
  // A place in the ring: W, K̃ (, B̂), v (, Q̄, P̃), d and factors of rows.
  static constexpr int kt = tile, b = kt + tile, rows = b + has_indirect * tile, q = rows + GROUPS * PANEL * 2;
  static constexpr int weights = q + has_outputs * tile, d = weights + has_outputs * PANEL * 2;
  static constexpr int write_factors = d + 512, read_factors = write_factors + 256, stage = read_factors + 256;
  static constexpr int fit = (227 * 1024 - 1024 - 512) / stage, stages = fit > 4 ? 4 : fit;
  static constexpr int barriers = stages * stage, bytes = barriers + 5 * stages * 16;
};

template <class L>
struct DeltaWalkBarriers {
  u64 *next;
  Gates w, kt, b, rows, reads;
  DEV_MEMBER DeltaWalkBarriers(unsigned char *memory)
      : next((u64 *)(memory + L::barriers)),
        w(next, L::stages),
        kt(next, L::stages),
        b(next, L::stages),
        rows(next, L::stages),
        reads(next, L::stages) {}
  DEV_MEMBER void begin() const {
    constexpr int uses = L::groups * 4 * WARP;
    w.begin(L::stages, 1, uses);
    kt.begin(L::stages, 1, uses);
    b.begin(L::stages, 1, uses);
    rows.begin(L::stages, 1, uses);
    reads.begin(L::stages, 1, uses);
    barrier_fence();
  }
};

/// What a block of threads walks over.
struct DeltaSpan {
  int first, last;  // chunks
  int column;       // of the values
  int transition;   // of the identity's columns, by 64; below 0: values
  DEV_MEMBER DeltaSpan(const DeltaTileArgs &t, int groups) {
    const int of_values = (t.m.values + groups * 64 - 1) / (groups * 64), group = threadIdx.x >> 7;
    first = t.segments > 1 ? blockIdx.z * t.segment_chunks : 0;
    last = t.segments > 1 && first + t.segment_chunks < t.m.chunks ? first + t.segment_chunks : t.m.chunks;
    column = (blockIdx.x * groups + group) * 64;
    transition = (int)blockIdx.x < of_values ? -1 : ((int)blockIdx.x - of_values) * groups + group;
  }
};

/// One thread: all tiles, chunk by chunk.
template <int RULE, int SOURCE, int K, class L>
DEV void bring_tiles(const DeltaTileArgs &t, unsigned char *memory, const DeltaWalkBarriers<L> &b, DeltaSpan span) {
  typedef Record<RULE, K> R;
  const MixerArgs &p = t.m;
  const int batch = blockIdx.y / p.heads, head = blockIdx.y % p.heads, key_head = head / (p.heads / p.key_heads);
  constexpr int factors = L::is_raw * 256;
  Ring ring;
#pragma unroll 1
  for (int n = span.first; n < span.last; n++) {
    const int record = blockIdx.y * p.chunks + n, i = ring.stage, row = n * CHUNK;
    const u32 empty = ring.parity ^ 1;
    const unsigned char *from = p.records + (long long)record * R::bytes;
    unsigned char *to = memory + i * L::stage;
    barrier_wait(b.w.empty + i, empty);
    barrier_expect(b.w.full + i, L::tile + K * 4 + factors);
    load_bytes(to + L::d, from + R::D * 2, K * 4, b.w.full + i);
    if (L::is_raw) {
      load_bytes(to + L::write_factors, from + R::F * 2, factors, b.w.full + i);
      load_inputs<K>(t.k, to, key_head, row, batch, b.w.full + i);
    } else {
      load_tile<K>(t, to, 1, record, b.w.full + i);
    }
    barrier_wait(b.kt.empty + i, empty);
    barrier_expect(b.kt.full + i, L::tile);
    load_tile<K>(t, to + L::kt, 0, record, b.kt.full + i);
    if (L::has_indirect) {
      barrier_wait(b.b.empty + i, empty);
      barrier_expect(b.b.full + i, L::tile);
      load_tile<K>(t, to + L::b, 3, record, b.b.full + i);
    }
    if (L::has_outputs) {
      barrier_wait(b.reads.empty + i, empty);
      barrier_expect(b.reads.full + i, L::tile + PANEL * 2 + factors);
      if (L::is_raw) {
        load_bytes(to + L::read_factors, from + R::F * 2 + 256, factors, b.reads.full + i);
        load_inputs<K>(t.q, to + L::q, key_head, row, batch, b.reads.full + i);
      } else {
        load_tile<K>(t, to + L::q, 2, record, b.reads.full + i);
      }
      load_bytes(to + L::weights, from, PANEL * 2, b.reads.full + i);
    }
    if (span.transition < 0) {
      barrier_wait(b.rows.empty + i, empty);
      barrier_expect(b.rows.full + i, L::groups * PANEL * 2);
#pragma unroll
      for (int g = 0; g < L::groups; g++)
        load_box((u16 *)(to + L::rows) + g * PANEL, t.rows, (blockIdx.x * L::groups + g) * 64, head, row, batch,
                 b.rows.full + i);
    }
    ring.advance<L::stages>();
  }
}

/// Four warps: their columns' state before the first chunk.
template <int K, int PART>
DEV void begin_state(const DeltaTileArgs &t, float (&S)[K / 8][4], DeltaSpan span) {
  const int column = span.column;
  clear(S);
  if (PART == OUTPUTS && blockIdx.z) {
    if (column < t.m.values) load_state<K>(S, segment_state<K>(t, blockIdx.z - 1, column / 64));
  } else if (PART == STATES && span.transition >= 0) {
    begin_transition<K>(S, span.transition);
  } else if (blockIdx.z == 0 && t.m.initial) {
    visit_state<K>(t.m, column, [&](int n, int e, long long i) { S[n][e] = t.m.initial[i]; });
  }
}

/// The same after the last chunk.
template <int K, int PART>
DEV void leave_state(const DeltaTileArgs &t, const float (&S)[K / 8][4], DeltaSpan span) {
  const int column = span.column;
  if (PART == OUTPUTS) {
    if (t.m.final && span.last == t.m.chunks)
      visit_state<K>(t.m, column, [&](int n, int e, long long i) { t.m.final[i] = S[n][e]; });
  } else if (span.transition < 0) {
    if (column < t.m.values) store_state<K>(segment_state<K>(t, blockIdx.z, column / 64), S);
  } else if (span.transition < K / 64) {
    store_transition<K>(segment_transition<K>(t, blockIdx.z, span.transition), S);
  }
}

/// Four warps: the state from chunk to chunk, and outputs.
template <int RULE, int K, int PART, class L>
DEV void keep_state(const DeltaTileArgs &t, unsigned char *memory, const DeltaWalkBarriers<L> &b, DeltaSpan span) {
  constexpr int STEPS = K / 16;
  const MixerArgs &p = t.m;
  const int group = threadIdx.x >> 7, column = span.column;
  const int batch = blockIdx.y / p.heads, head = blockIdx.y % p.heads;
  const bool decays = p.gate_kind || p.reset, has_values = PART == OUTPUTS || span.transition < 0;
  const long long stride = (long long)p.heads * p.values;
  const long long first_row = (long long)batch * p.tokens * stride + (long long)head * p.values + column;
  const auto write = [&](void *to, int chunk, u16 *panel, const Turned &rows) {
    store_turned(panel, rows);
    write_rows((bf16 *)to + first_row + chunk * CHUNK * stride, stride, p.tokens - chunk * CHUNK, p.values - column,
               panel, [] {});
  };
  float S[K / 8][4], o[8][4];
  begin_state<K, PART>(t, S, span);
  u32 s[STEPS][4];
  const auto round_state = [&] {
#pragma unroll
    for (int i = 0; i < STEPS; i++) as_a(s[i], S[i * 2], S[i * 2 + 1]);
    hold(s);
  };
  round_state();
  Turned out;
  Ring ring, before;
  // Outputs of a chunk, in the place of its values, while the next chunk's first products run.
  const auto write_outputs = [&](int chunk) {
    if (RULE == BETA && p.written) group_wait(group);  // all have taken what tokens write from there
    write(p.y, chunk, (u16 *)(memory + before.stage * L::stage + L::rows) + group * PANEL, out);
  };
  barrier_wait(b.w.full, 0);
#pragma unroll 1
  for (int n = span.first; n < span.last; n++) {
    unsigned char *stage = memory + ring.stage * L::stage;
    const u64 w = panel_operand((const u16 *)stage), kt = panel_operand((const u16 *)(stage + L::kt), PANEL * 2);
    u16 *panel = (u16 *)(stage + L::rows) + group * PANEL;
    // Before any product is under way: the compiler waits for all where it sees the accumulators changed.
    if (decays) decay_state(S, (const float *)(stage + L::d));
    pin(S);
    float y[8][4];
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < STEPS; i++) wgmma<0>(y, s[i], w + panel_step(i), i);
    wgmma_commit();
    if (PART == OUTPUTS) {
      barrier_wait(b.reads.full + ring.stage, ring.parity);
      const u64 q = panel_operand((const u16 *)(stage + L::q));
#pragma unroll
      for (int i = 0; i < STEPS; i++) wgmma<0>(o, s[i], q + panel_step(i), i);
      wgmma_commit();
      if (uint4 *to = kept_state<K>(p.states, p, column, n))
#pragma unroll
        for (int i = 0; i < STEPS; i++) to[i * 32] = {s[i][0], s[i][1], s[i][2], s[i][3]};
      if (n > span.first) write_outputs(n - 1);
    }
    Turned va = {}, ya;
    if (has_values) {
      barrier_wait(b.rows.full + ring.stage, ring.parity);
      load_turned(va, panel);
    }
    two f[8];
    if (L::is_raw) load_factors(f, (const float *)(stage + L::write_factors));
    barrier_wait(b.kt.full + ring.stage, ring.parity);
    if (RULE == GENERAL) {
      hold(va);
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < 4; j++) wgmma<1>(S, va[j], kt + turned_step(j), 1);
      wgmma_commit();
    }
    wgmma_wait<(PART == OUTPUTS) + (RULE == GENERAL)>();
    pin(y);
    if (L::is_raw) times_factors(y, f);
    if (RULE == BETA && has_values) add_turned(y, va);
    as_turned(ya, y);
    hold(ya);
    if (RULE == GENERAL) barrier_wait(b.b.full + ring.stage, ring.parity);
    wgmma_fence();
    const u64 added = RULE == GENERAL ? panel_operand((const u16 *)(stage + L::b), PANEL * 2) : kt;
#pragma unroll
    for (int j = 0; j < 4; j++) wgmma<1>(S, ya[j], added + turned_step(j), 1);
    wgmma_commit();
    if (L::is_raw && PART == OUTPUTS) load_factors(f, (const float *)(stage + L::read_factors));
    // What was read in the ordinary way: gates, values, the last chunk's outputs. Not just after stores, for which it
    // may wait.
    proxy_fence();
    arrive_as_warp(b.w.empty + ring.stage);
    if (PART == OUTPUTS) {
      if (n > span.first) {
        arrive_as_warp(b.rows.empty + before.stage);
        before.advance<L::stages>();
      }
      wgmma_wait<RULE == GENERAL ? 2 : 1>();
      pin(o);
      hold(s);
      if (L::is_raw) times_factors(o, f);
      const u64 weights = panel_operand((const u16 *)(stage + L::weights));
      Turned &read = RULE == GENERAL ? va : ya;
      pin(o);
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < 4; j++) wgmma<0>(o, read[j], weights + panel_step(j), 1);
      wgmma_commit();
      if (RULE == BETA && p.written) write(p.written, n, panel, ya);
      wgmma_wait<1>();
    } else {
      if (has_values) arrive_as_warp(b.rows.empty + ring.stage);
      wgmma_wait<0>();
      hold(s);
    }
    pin(S);
    arrive_as_warp(b.kt.empty + ring.stage);
    if (RULE == GENERAL) arrive_as_warp(b.b.empty + ring.stage);
    round_state();
    const int done = ring.stage;
    ring.advance<L::stages>();
    // Also keeps the compiler from rounding the state only when outputs are there.
    if (n + 1 < span.last) barrier_wait(b.w.full + ring.stage, ring.parity);
    if (PART == OUTPUTS) {
      wgmma_wait<0>();
      pin(o);
      as_turned(out, o);
      hold(out);
      arrive_as_warp(b.reads.empty + done);
    }
    hold(ya);
    if (RULE == GENERAL) hold(va);
  }
  if (PART == OUTPUTS) write_outputs(span.last - 1);
  leave_state<K, PART>(t, S, span);
}

/// Grid (⌈V / 64 / GROUPS⌉, B·H, segments), DeltaWalkLayout's threads, its bytes + 1,024 of shared memory. Reads
/// records, v, and initial or the states of segments, with RAW q and k; writes y, and states, written, final where
/// given.
/// STATES: grid (⌈V / 64 / GROUPS⌉ + ⌈K / 64 / GROUPS⌉, B·H, segments − 1); writes what segments leave.
template <int RULE, int SOURCE, int K, int GROUPS, int PART>
DEV void walk_delta_tiles(const DeltaTileArgs &t) {
  typedef DeltaWalkLayout<RULE, SOURCE, K, GROUPS, PART> L;
  SHARED(raw);
  unsigned char *memory = raw + ((1024 - (shared_address(raw) & 1023)) & 1023);
  const DeltaWalkBarriers<L> b(memory);
  const DeltaSpan span(t, GROUPS);
  if (PART == STATES && span.transition >= 0 && !blockIdx.z) return;  // nothing is before the first segment
  if (threadIdx.x == 0) b.begin();
  __syncthreads();
  if (threadIdx.x < GROUPS * 128) {
    if (GROUPS == 2) more_registers<232>();
    keep_state<RULE, K, PART, L>(t, memory, b, span);
  } else {
    if (GROUPS == 2) fewer_registers<40>();
    if (threadIdx.x == GROUPS * 128) bring_tiles<RULE, SOURCE, K, L>(t, memory, b, span);
  }
  __syncwarp();
}

/// Grid (⌈V / 64⌉, B·H), 128 threads, gyre_cuda_delta_tiles_fold_shared. Makes of what segments add to a state the
/// states that they leave: S ← M S + L, operands in two parts of bf16, products of low parts left out.
template <int K>
DEV void fold_delta_segments(const DeltaTileArgs &t) {
  constexpr int STEPS = K / 16, tile = K * 128, stage = K / 64 * 2 * tile;
  SHARED(raw);
  unsigned char *memory = raw + ((1024 - (shared_address(raw) & 1023)) & 1023);
  u64 *full = (u64 *)(memory + 2 * stage);
  const int last = t.segments - 2;
  const auto fetch = [&](int segment) {
    if (threadIdx.x || segment > last) return;
    u64 *barrier = full + (segment & 1);
    barrier_expect(barrier, stage);
    load_bytes(memory + (segment & 1) * stage, segment_transition<K>(t, segment, 0), stage, barrier);
  };
  if (threadIdx.x == 0) {
    barrier_init(full, 1);
    barrier_init(full + 1, 1);
    barrier_fence();
  }
  __syncthreads();
  fetch(1);
  float S[K / 8][4], added[K / 8][4];
  load_state<K>(S, segment_state<K>(t, 0, blockIdx.x));
  if (last) load_state<K>(added, segment_state<K>(t, 1, blockIdx.x));
#pragma unroll 1
  for (int segment = 1; segment <= last; segment++) {
    u32 high[STEPS][4], low[STEPS][4];
    split_state<K>(high, low, S);
    hold(high);
    hold(low);
#pragma unroll
    for (int n = 0; n < K / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) S[n][e] = added[n][e];
    fetch(segment + 1);
    barrier_wait(full + (segment & 1), (segment - 1) >> 1 & 1);
    const u16 *tiles = (const u16 *)(memory + (segment & 1) * stage);
    pin(S);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
      const u64 m = panel_operand(tiles + i / 4 * 128 * K, PANEL * 2) + turned_step(i % 4);
      wgmma<1>(S, high[i], m, 1);
      wgmma<1>(S, low[i], m, 1);
      wgmma<1>(S, high[i], m + (tile >> 4), 1);
    }
    wgmma_commit();
    if (segment < last) load_state<K>(added, segment_state<K>(t, segment + 1, blockIdx.x));
    wgmma_wait<0>();
    pin(S);
    hold(high);
    hold(low);
    store_state<K>(segment_state<K>(t, segment, blockIdx.x), S);
    __syncthreads();  // all are done with the tiles
  }
}

#define DELTA_WALK(name, RULE, SOURCE, K, GROUPS, PART)                                           \
  ENTRY_BLOCKS(name, DeltaTileArgs, (DeltaWalkLayout<RULE, SOURCE, K, GROUPS, PART>::threads), 1, \
               walk_delta_tiles<RULE, SOURCE, K, GROUPS, PART>(args))
/// For blocks of V value columns.
#define DELTA_WALKS(K, G, V)                                                         \
  DELTA_WALK(delta_rule_tiles_raw_v##V##_k##K, BETA, RAW, K, G, OUTPUTS)             \
  DELTA_WALK(delta_rule_tiles_raw_states_v##V##_k##K, BETA, RAW, K, G, STATES)       \
  DELTA_WALK(delta_rule_tiles_v##V##_k##K, BETA, CHANNELS, K, G, OUTPUTS)            \
  DELTA_WALK(delta_rule_tiles_states_v##V##_k##K, BETA, CHANNELS, K, G, STATES)      \
  DELTA_WALK(delta_rule_tiles_general_v##V##_k##K, GENERAL, CHANNELS, K, G, OUTPUTS) \
  DELTA_WALK(delta_rule_tiles_general_states_v##V##_k##K, GENERAL, CHANNELS, K, G, STATES)
#define DELTA_TILES(K)   \
  DELTA_WALKS(K, 1, 64)  \
  DELTA_WALKS(K, 2, 128) \
  ENTRY(delta_rule_tiles_fold_k##K, DeltaTileArgs, 128, fold_delta_segments<K>(args))
#define DELTA_TILES_OF(K) DELTA_TILES(K)
DELTA_TILES_OF(GYRE_KEYS)

#endif
