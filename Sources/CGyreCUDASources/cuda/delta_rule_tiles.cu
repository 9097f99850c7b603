// The delta rules' walk for Hopper where nothing is kept for a gradient: records as `prepare` writes
// them (chunk_common.cuh), bfloat16, keys of up to 64 or 128 channels, values by 64 columns.
//
// A block of threads owns 64 value columns of a head's state. Four warps keep it transposed in
// registers, where it is the operand of Y = W S, and run ahead; eight make outputs, four of them every
// second chunk, from the state that these leave in shared memory. The copy engine brings the tiles of
// a record one by one, each again as soon as its last product has ended.
// Variants: GYRE_KEYS=64,128
#include "chunk_common.cuh"
#include "wgmma.cuh"

/// `tiles`: records as [record, K̃ | W | Q̃ | B̂ of 64 rows, K / 64, 64] in boxes of 64 rows, as they lie;
/// `v` in boxes of 64 rows and channels of a head.
struct DeltaTileArgs {
  gyre_tensor_map tiles, v;
  MixerArgs m;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

enum { OUTPUT_GROUPS = 2 };

template <int K>
struct DeltaTilesLayout {
  typedef Record<GENERAL, K> R;
  static constexpr int threads = (2 + OUTPUT_GROUPS) * 128, panels = K / 64, tile = panels * PANEL * 2;
  static constexpr int stages = K == 64 ? 3 : 2;  // of W with d, K̃ and B̂
  static constexpr int reads = K == 64 ? 4 : 3;   // of Q̃, P̃ and v
  static constexpr int slots = K == 64 ? 3 : 2;   // of states at chunks' starts
  static constexpr int read = tile + 2 * PANEL * 2;
  static constexpr int w = 0, kt = w + stages * tile, b = kt + stages * tile, q = b + stages * tile;
  static constexpr int states = q + reads * read, d = states + slots * tile;
  static constexpr int barriers = d + stages * K * 4;
  static constexpr int bytes = barriers + (3 * stages + reads + slots) * 16;
};

/// A ring's barriers: who fills a place, who is done with it.
struct Gates {
  u64 *full, *empty;
  DEV_MEMBER void begin(int count, int fills, int uses) const {
    for (int i = 0; i < count; i++) {
      barrier_init(full + i, fills);
      barrier_init(empty + i, uses);
    }
  }
};

template <class L>
struct DeltaBarriers {
  Gates w, kt, b, read, state;
  DEV_MEMBER DeltaBarriers(unsigned char *memory) {
    u64 *x = (u64 *)(memory + L::barriers);
    w = {x, x + L::stages};
    kt = {x + 2 * L::stages, x + 3 * L::stages};
    b = {x + 4 * L::stages, x + 5 * L::stages};
    x += 6 * L::stages;
    read = {x, x + L::reads};
    x += 2 * L::reads;
    state = {x, x + L::slots};
  }
  DEV_MEMBER void begin() const {
    constexpr int uses = 4 * WARP;
    w.begin(L::stages, 1, uses);
    kt.begin(L::stages, 1, uses);
    b.begin(L::stages, 1, uses);
    // The state's warps, and one group of outputs.
    read.begin(L::reads, 1, 2 * uses);
    state.begin(L::slots, 4 * WARP, 4 * WARP);
    barrier_fence();
  }
};

/// One thread: a tile of a record, by its place in it.
template <class L>
DEV void load_tile(const DeltaTileArgs &t, unsigned char *to, int tile, int record, u64 *full) {
#pragma unroll
  for (int i = 0; i < L::panels; i++)
    load_box((u16 *)to + i * PANEL, t.tiles, 0, i, tile * 64, record, full);
}

/// One thread: what the state needs.
template <int K, class L>
DEV void bring_updates(const DeltaTileArgs &t, unsigned char *memory, const DeltaBarriers<L> &b) {
  typedef Record<GENERAL, K> R;
  Ring ring;
  for (int n = 0; n < t.m.chunks; n++) {
    const int record = blockIdx.y * t.m.chunks + n, i = ring.stage;
    barrier_wait(b.w.empty + i, ring.parity ^ 1);
    barrier_expect(b.w.full + i, L::tile + K * 4);
    load_bytes(memory + L::d + i * K * 4, t.m.records + (long long)record * R::bytes + R::D * 2, K * 4, b.w.full + i);
    load_tile<L>(t, memory + L::w + i * L::tile, 1, record, b.w.full + i);
    barrier_wait(b.kt.empty + i, ring.parity ^ 1);
    barrier_expect(b.kt.full + i, L::tile);
    load_tile<L>(t, memory + L::kt + i * L::tile, 0, record, b.kt.full + i);
    barrier_wait(b.b.empty + i, ring.parity ^ 1);
    barrier_expect(b.b.full + i, L::tile);
    load_tile<L>(t, memory + L::b + i * L::tile, 3, record, b.b.full + i);
    ring.advance<L::stages>();
  }
}

/// One thread: what outputs need; values also enter the state.
template <int K, class L>
DEV void bring_reads(const DeltaTileArgs &t, unsigned char *memory, const DeltaBarriers<L> &b) {
  typedef Record<GENERAL, K> R;
  const int batch = blockIdx.y / t.m.heads, head = blockIdx.y % t.m.heads;
  Ring ring;
  for (int n = 0; n < t.m.chunks; n++) {
    const int record = blockIdx.y * t.m.chunks + n;
    unsigned char *to = memory + L::q + ring.stage * L::read;
    u64 *full = b.read.full + ring.stage;
    barrier_wait(b.read.empty + ring.stage, ring.parity ^ 1);
    barrier_expect(full, L::read);
    load_box((u16 *)(to + L::tile + PANEL * 2), t.v, blockIdx.x * 64, head, n * CHUNK, batch, full);
    load_tile<L>(t, to, 2, record, full);
    const unsigned char *weights = t.m.records + (long long)record * R::bytes;
    load_bytes(to + L::tile, weights, PANEL * 2, full);
    ring.advance<L::reads>();
  }
}

/// Calls `each(n, e, index)` for the elements of the [64 values, K] state that a thread holds.
template <int K, class F>
DEV void visit_state(const MixerArgs &p, F each) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, g = lane >> 2, c = (lane & 3) * 2;
#pragma unroll
  for (int n = 0; n < K / 8; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int key = n * 8 + c + (e & 1), value = blockIdx.x * 64 + warp * 16 + g + (e >> 1) * 8;
      if (key < p.keys && value < p.values)
        each(n, e, ((long long)blockIdx.y * p.keys + key) * p.values + value);
    }
}

/// Four warps: the state from chunk to chunk.
template <int K, class L>
DEV void keep_state(const DeltaTileArgs &t, unsigned char *memory, const DeltaBarriers<L> &b) {
  constexpr int STEPS = K / 16;
  const MixerArgs &p = t.m;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, c = (lane & 3) * 2;
  const bool decays = p.gate_kind || p.reset;
  float S[K / 8][4];
  clear(S);
  if (p.initial) visit_state<K>(p, [&](int n, int e, long long i) { S[n][e] = p.initial[i]; });
  Ring ring, read, slot;
#pragma unroll 1
  for (int n = 0; n < p.chunks; n++) {
    const u64 w = panel_operand((const u16 *)(memory + L::w + ring.stage * L::tile));
    const u16 *kt = (const u16 *)(memory + L::kt + ring.stage * L::tile);
    const u16 *write = (const u16 *)(memory + L::b + ring.stage * L::tile);
    const u16 *v = (const u16 *)(memory + L::q + read.stage * L::read + L::tile) + PANEL;
    const float *d = (const float *)(memory + L::d) + ring.stage * K;
    u32 s[STEPS][4], kept[STEPS][4];
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
      as_a(s[i], S[i * 2], S[i * 2 + 1]);
#pragma unroll
      for (int e = 0; e < 4; e++) kept[i][e] = s[i][e];
    }
    hold(s);
    hold(kept);
    barrier_wait(b.w.full + ring.stage, ring.parity);
    // Before any product is under way: the compiler waits for all where it sees the accumulators changed.
    if (decays)
#pragma unroll
      for (int i = 0; i < K / 8; i++) {
        const two f = *(const two *)(d + i * 8 + c);
        S[i][0] *= f.x;
        S[i][1] *= f.y;
        S[i][2] *= f.x;
        S[i][3] *= f.y;
      }
    pin(S);
    float y[8][4];
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < STEPS; i++) wgmma<0>(y, s[i], w + panel_step(i), i);
    wgmma_commit();
    // While that runs: the state for the outputs, and this chunk's values.
    barrier_wait(b.state.empty + slot.stage, slot.parity ^ 1);
    u16 *to = (u16 *)(memory + L::states + slot.stage * L::tile);
#pragma unroll
    for (int i = 0; i < STEPS; i++)
#pragma unroll
      for (int h = 0; h < 4; h++)
        *(u32 *)(to + i / 4 * PANEL + at<64>(warp * 16 + (lane >> 2) + (h & 1) * 8, i % 4 * 16 + (h >> 1) * 8 + c)) =
            kept[i][h];
    proxy_fence();
    arrive_as_warp(b.state.full + slot.stage);
    barrier_wait(b.read.full + read.stage, read.parity);
    u32 va[4][4];
#pragma unroll
    for (int j = 0; j < 4; j++) load_a_t<64>(va[j], v, warp * 16, j * 16);
    hold(va);
    barrier_wait(b.kt.full + ring.stage, ring.parity);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; j++) wgmma<1>(S, va[j], panel_operand(kt, PANEL * 2) + turned_step(j), 1);
    wgmma_commit();
    wgmma_wait<1>();
    pin(y);
    hold(s);
    proxy_fence();  // d and values were read in the ordinary way
    arrive_as_warp(b.w.empty + ring.stage);
    arrive_as_warp(b.read.empty + read.stage);
    u32 ya[4][4];
#pragma unroll
    for (int j = 0; j < 4; j++) as_a(ya[j], y[j * 2], y[j * 2 + 1]);
    hold(ya);
    barrier_wait(b.b.full + ring.stage, ring.parity);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; j++) wgmma<1>(S, ya[j], panel_operand(write, PANEL * 2) + turned_step(j), 1);
    wgmma_commit();
    wgmma_wait<1>();
    hold(va);
    arrive_as_warp(b.kt.empty + ring.stage);
    wgmma_wait<0>();
    pin(S);
    hold(ya);
    arrive_as_warp(b.b.empty + ring.stage);
    ring.advance<L::stages>();
    read.advance<L::reads>();
    slot.advance<L::slots>();
  }
  if (p.final) visit_state<K>(p, [&](int n, int e, long long i) { p.final[i] = S[n][e]; });
}

/// Four warps: outputs of every OUTPUT_GROUPS-th chunk from `group` on.
template <int K, class L>
DEV void write_outputs(const DeltaTileArgs &t, unsigned char *memory, const DeltaBarriers<L> &b, int group) {
  const MixerArgs &p = t.m;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, g = lane >> 2, c = (lane & 3) * 2;
  const int batch = blockIdx.y / p.heads, head = blockIdx.y % p.heads, column = blockIdx.x * 64;
  const long long stride = (long long)p.heads * p.values;
  const long long y_row = (long long)batch * p.tokens * stride + (long long)head * p.values + column;
  Ring read, slot;
  for (int i = 0; i < group; i++) {
    read.advance<L::reads>();
    slot.advance<L::slots>();
  }
#pragma unroll 1
  for (int n = group; n < p.chunks; n += OUTPUT_GROUPS) {
    u16 *tile = (u16 *)(memory + L::q + read.stage * L::read), *scores = tile + L::panels * PANEL;
    const u16 *before = (const u16 *)(memory + L::states + slot.stage * L::tile);
    const u64 queries = panel_operand(tile), state = panel_operand(before);
    const u64 weights = panel_operand(scores), values = panel_operand(scores + PANEL);
    float o[8][4];
    barrier_wait(b.read.full + read.stage, read.parity);
    barrier_wait(b.state.full + slot.stage, slot.parity);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < K / 16; i++) wgmma<0>(o, queries + panel_step(i), state + panel_step(i), i);
    wgmma_commit();
#pragma unroll
    for (int j = 0; j < 4; j++) wgmma<1>(o, weights + j * 2, values + turned_step(j), 1);
    wgmma_commit();
    wgmma_wait<1>();
    arrive_as_warp(b.state.empty + slot.stage);
    wgmma_wait<0>();
    pin(o);
    // Rows of queries are this warp's own: they have become rows of outputs.
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
      for (int m = 0; m < 8; m++)
        *(u32 *)(tile + at<64>(warp * 16 + g + h * 8, m * 8 + c)) = pack2(o[m][h * 2], o[m][h * 2 + 1]);
    __syncwarp();
#pragma unroll
    for (int m = 0; m < 4; m++) {
      const int row = warp * 16 + m * 4 + (lane >> 3), v = (lane & 7) * 8, token = n * CHUNK + row;
      const uint4 x = *(const uint4 *)(tile + at<64>(row, v));
      if (token < p.tokens && column + v < p.values) *(uint4 *)((bf16 *)p.y + y_row + token * stride + v) = x;
    }
    proxy_fence();
    arrive_as_warp(b.read.empty + read.stage);
#pragma unroll
    for (int i = 0; i < OUTPUT_GROUPS; i++) {
      read.advance<L::reads>();
      slot.advance<L::slots>();
    }
  }
}

/// Grid (⌈V / 64⌉, B·H), DeltaTilesLayout's threads, its bytes + 1,024 of shared memory. Reads records, v,
/// initial; writes y, and final where given.
template <int K>
DEV void delta_tiles(const DeltaTileArgs &t) {
  typedef DeltaTilesLayout<K> L;
  SHARED(raw);
  unsigned char *memory = raw + ((1024 - (shared_address(raw) & 1023)) & 1023);
  const DeltaBarriers<L> b(memory);
  if (threadIdx.x == 0) b.begin();
  __syncthreads();
  const int group = threadIdx.x >> 7;
  if (group == 1 + OUTPUT_GROUPS) {
    fewer_registers<40>();
    if (threadIdx.x % 128 == 0) bring_updates<K, L>(t, memory, b);
    if (threadIdx.x % 128 == 32) bring_reads<K, L>(t, memory, b);
  } else if (group == 0) {
    more_registers<232>();
    keep_state<K, L>(t, memory, b);
  } else {
    fewer_registers<96>();
    write_outputs<K, L>(t, memory, b, group - 1);
  }
  __syncwarp();
}

#define DELTA_TILES(K)                                                                             \
  ENTRY_BLOCKS(delta_rule_tiles_k##K, DeltaTileArgs, (DeltaTilesLayout<K>::threads), 1, delta_tiles<K>(args))
#define DELTA_TILES_OF(K) DELTA_TILES(K)
DELTA_TILES_OF(GYRE_KEYS)

#endif
