// The delta rule's walk back for Hopper (delta_tiles.cuh): gradients of the states, and of the values, from dy.
//
// A chunk adds two products to its values' gradients, dVᵀ = dOᵀ P̃ + dS'ᵀ K̃ᵀ, and two to the state's,
// dSᵀ = d dS'ᵀ + dOᵀ Q̄ + dVᵀ W. Only every second one waits for the one before it, so another always runs while
// registers become the next operand: P̃ of the next chunk under the state's, Q̄ under the values'.
//
// Where heads are too few for the card, the walk is cut into segments. A first launch walks all but the last of them:
// the first as it is, the others from nothing, and it makes what each of these does to a gradient that enters it. The
// second launch walks all but the first, each from what those before it leave.
// Variants: GYRE_KEYS=64,128
#include "delta_tiles.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

template <int K>
struct DeltaBackLayout {
  typedef Record<BETA, K> R;
  static constexpr int threads = 128 + 32, blocks = K == 64 ? 2 : 1;
  static constexpr int tile = 64 * K * 2, tiles = K == 64 ? 7 : 10;                // K̃, Q̄, W in turn
  static constexpr int weights = 0, rows = PANEL * 2, factors = 2 * PANEL * 2;      // in one of these: P̃, dO, d and F
  static constexpr int near = factors + (K * 4 + 512 + 1023) / 1024 * 1024, nears = 3;
  static constexpr int together = K == 64 ? 1 : 2;  // steps in a loop
  static constexpr int first = tiles * tile, barriers = first + nears * near;
  static constexpr int bytes = barriers + (tiles + nears) * 16;
};

/// What a block of threads makes of its chunks: all there is, what they leave of nothing, or of any gradient.
enum BackPart { OUTPUTS, LOCAL, TRANSITION };

/// This block's part of the problem; steps count from the last chunk.
struct BackSegment {
  int segment, first, count;
  DEV_MEMBER BackSegment(const DeltaTileArgs &t, int i) : segment(i), first(i * t.segment_chunks) {
    const int rest = t.m.chunks - first;
    count = rest < t.segment_chunks ? rest : t.segment_chunks;
  }
  DEV_MEMBER float4 *state(const DeltaTileArgs &t, int i, int keys) const {
    const int columns = (t.m.values + 63) / 64;
    return (float4 *)t.segment_states +
           (((long long)blockIdx.y * (t.segments - 1) + i) * columns + blockIdx.x) * keys * 16 + threadIdx.x;
  }
};

template <class L>
struct BackBarriers {
  u64 *next;
  Gates tile, near;
  DEV_MEMBER BackBarriers(unsigned char *memory)
      : next((u64 *)(memory + L::barriers)), tile(next, L::tiles), near(next, L::nears) {}
  DEV_MEMBER void begin() const {
    tile.begin(L::tiles, 1, 4 * WARP);
    near.begin(L::nears, 1, 4 * WARP);
    barrier_fence();
  }
};

/// One thread: what its chunks need, in the order of use.
template <int K, DeltaSource SOURCE, BackPart PART>
DEV void bring(const DeltaTileArgs &t, const BackSegment &w, unsigned char *memory) {
  typedef DeltaBackLayout<K> L;
  typedef Record<BETA, K> R;
  constexpr int factors = K * 4 + (SOURCE == RAW ? 512 : 0);
  const MixerArgs &p = t.m;
  const BackBarriers<L> b(memory);
  const int batch = blockIdx.y / p.heads, head = blockIdx.y % p.heads, key_head = head / (p.heads / p.key_heads);
  Ring tile, near;
  u64 *full = nullptr;
  const auto next_tile = [&] {
    unsigned char *to = memory + tile.stage * L::tile;
    full = b.tile.full + tile.stage;
    barrier_wait(b.tile.empty + tile.stage, tile.parity ^ 1);
    barrier_expect(full, L::tile);
    tile.advance<L::tiles>();
    return to;
  };
  if (PART == OUTPUTS)
    for (int i = 1; i < w.segment; i++)
      for (int part = 0; part < K / 32; part++) {
        unsigned char *to = next_tile();
        load_bytes(to, segment_transition<K>(t, i, part / 2) + part % 2 * 64 * K, L::tile, full);
      }
  for (int n = 0; n < w.count; n++) {
    const int chunk = p.chunks - 1 - w.first - n, record = blockIdx.y * p.chunks + chunk;
    const unsigned char *from = p.records + (long long)record * R::bytes;
    unsigned char *to = memory + L::first + near.stage * L::near;
    u64 *there = b.near.full + near.stage;
    barrier_wait(b.near.empty + near.stage, near.parity ^ 1);
    barrier_expect(there, factors + (PART == TRANSITION ? 0 : 2 * PANEL * 2));
    if (PART != TRANSITION) {
      load_box((u16 *)(to + L::rows), t.rows, blockIdx.x * 64, head, chunk * CHUNK, batch, there);
      load_bytes(to + L::weights, from, PANEL * 2, there);
    }
    load_bytes(to + L::factors, from + R::D * 2, factors, there);
    near.advance<L::nears>();
    to = next_tile();
    load_tile<K>(t, to, 0, record, full);
    if (PART != TRANSITION) {
      to = next_tile();
      if (SOURCE == RAW)
        load_inputs<K>(t.q, to, key_head, chunk * CHUNK, batch, full);
      else
        load_tile<K>(t, to, 2, record, full);
    }
    to = next_tile();
    if (SOURCE == RAW)
      load_inputs<K>(t.k, to, key_head, chunk * CHUNK, batch, full);
    else
      load_tile<K>(t, to, 1, record, full);
  }
}

/// Four warps: a tile of the ring as an operand that lies as [depth][column]; and to let go of it.
template <class L>
struct TileReader {
  const unsigned char *memory;
  Gates gates;
  Ring here, last;
  DEV_MEMBER TileReader(const unsigned char *m, const Gates &g) : memory(m), gates(g) {}
  DEV_MEMBER const u16 *take() {
    const u16 *tile = (const u16 *)(memory + here.stage * L::tile);
    barrier_wait(gates.full + here.stage, here.parity);
    here.advance<L::tiles>();
    return tile;
  }
  DEV_MEMBER void release() {
    arrive_as_warp(gates.empty + last.stage);
    last.advance<L::tiles>();
  }
};

/// S ← what a segment makes of it, with float32's first 16 bits each in two parts.
template <int K, class L>
DEV void enter(float (&S)[K / 8][4], const float4 *local, TileReader<L> &tiles) {
  u32 high[K / 16][4], low[K / 16][4];
  split_state<K>(high, low, S);
  load_state<K>(S, local);
#pragma unroll
  for (int m = 0; m < K / 64; m++) {
    const u64 of_high = panel_operand(tiles.take(), PANEL * 2), of_low = panel_operand(tiles.take(), PANEL * 2);
    pin(S);
    hold(high);
    hold(low);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; j++) {
      wgmma<1>(S, low[m * 4 + j], of_high + turned_step(j), 1);
      wgmma<1>(S, high[m * 4 + j], of_low + turned_step(j), 1);
      wgmma<1>(S, high[m * 4 + j], of_high + turned_step(j), 1);
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(S);
    hold(high);
    hold(low);
    tiles.release();
    tiles.release();
  }
}

/// Four warps: the state's gradient through the chunks.
template <int K, DeltaSource SOURCE, BackPart PART>
DEV void walk_back(const DeltaTileArgs &t, const BackSegment &w, unsigned char *memory) {
  typedef DeltaBackLayout<K> L;
  constexpr int STEPS = K / 16;
  constexpr bool ROWS = PART != TRANSITION;
  const MixerArgs &p = t.m;
  const BackBarriers<L> b(memory);
  const int batch = blockIdx.y / p.heads, head = blockIdx.y % p.heads, column = blockIdx.x * 64;
  const long long stride = (long long)p.heads * p.values;
  bf16 *dv = (bf16 *)p.dv + (long long)batch * p.tokens * stride + (long long)head * p.values + column;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = (lane & 3) * 2;
  const int row = PART == TRANSITION ? column - (p.values + 63) / 64 * 64 : 0;
  TileReader<L> tiles(memory, b.tile);

  float S[K / 8][4];
  clear(S);
  if (PART == TRANSITION) {
#pragma unroll
    for (int n = 0; n < K / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) S[n][e] = n * 8 + c + (e & 1) == row + warp * 16 + g + (e >> 1) * 8;
  }
  if (PART == OUTPUTS && w.segment == 0 && p.d_final)
    visit_state<K>(p, column, [&](int n, int e, long long i) { S[n][e] = p.d_final[i]; });
  if (PART == OUTPUTS && w.segment > 0) {
    load_state<K>(S, w.state(t, 0, K));
#pragma unroll 1
    for (int i = 1; i < w.segment; i++) enter<K>(S, w.state(t, i, K), tiles);
  }

  float y[8][4];
  Turned rows, queried;
  Ring near;
  // dVᵀ ← dOᵀ P̃, left under way, and dO as Q̄ᵀ takes it.
  const auto begin_values = [&](bool is_there) {
    unsigned char *at = memory + L::first + near.stage * L::near;
    if (is_there) barrier_wait(b.near.full + near.stage, near.parity);
    load_turned(rows, (const u16 *)(at + L::rows));
    hold(rows);
    const u64 weights = panel_operand((const u16 *)(at + L::weights));
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; j++) wgmma<1>(y, rows[j], weights + turned_step(j), j);
    wgmma_commit();
    two f[8];
    if (SOURCE == RAW) load_factors(f, (const float *)(at + L::factors) + K + 64);
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int h = 0; h < 4; h++)
        queried[j][h] = SOURCE == RAW ? scaled(rows[j][h], f[j * 2 + (h >> 1)]) : rows[j][h];
    hold(queried);
  };
  const auto drain = [&] {
    wgmma_wait<0>();
    pin(y);
    if (ROWS) hold(rows);
  };
  if (ROWS) begin_values(true);
  drain();
  const auto step = [&](int n, bool is_last) {
    const int chunk = p.chunks - 1 - w.first - n;
    unsigned char *at = memory + L::first + near.stage * L::near;
    const float *d = (const float *)(at + L::factors);
    u32 s[STEPS][4];
#pragma unroll
    for (int i = 0; i < STEPS; i++) as_a(s[i], S[i * 2], S[i * 2 + 1]);
    hold(s);
    const u64 write = panel_operand(tiles.take());
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < STEPS; i++) wgmma<0>(y, s[i], write + panel_step(i), ROWS || i);
    wgmma_commit();
    // While that runs.
    if (!ROWS) barrier_wait(b.near.full + near.stage, near.parity);
    if (SOURCE == RAW) {
      const float f = d[0];
#pragma unroll
      for (int i = 0; i < K / 8; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) S[i][e] *= f;
    } else {
      decay_state(S, d);
    }
    pin(S);
    two f[8];
    if (SOURCE == RAW) load_factors(f, d + K);
    if (ROWS) {
      const u64 q = panel_operand(tiles.take(), PANEL * 2);
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < 4; j++) wgmma<1>(S, queried[j], q + turned_step(j), 1);
      wgmma_commit();
      wgmma_wait<1>();
    } else {
      wgmma_wait<0>();
    }
    pin(y);
    hold(s);
    if (ROWS) hold(rows);
    tiles.release();
    Turned values, written;
    if (PART == OUTPUTS) as_turned(values, y);
    if (SOURCE == RAW) times_factors(y, f);
    as_turned(written, y);
    hold(written);
    const u64 k = panel_operand(tiles.take(), PANEL * 2);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; j++) wgmma<1>(S, written[j], k + turned_step(j), 1);
    wgmma_commit();
    const auto let_go = [&] {
      proxy_fence();  // all of this place was read in the ordinary way
      arrive_as_warp(b.near.empty + near.stage);
    };
    if (PART == OUTPUTS) {
      // A warp's columns of dO have become columns of dV.
      u16 *panel = (u16 *)(at + L::rows);
      store_turned(panel, values);
      __syncwarp();
      const int start = chunk * CHUNK;
      write_rows(dv + start * stride, stride, p.tokens - start, p.values - column, panel, let_go);
      // As late for the same reason.
      if (uint4 *to = kept_state<K>(p.state_gradients, p, column, chunk))
#pragma unroll
        for (int i = 0; i < STEPS; i++) to[i * 32] = {s[i][0], s[i][1], s[i][2], s[i][3]};
    } else {
      let_go();
    }
    const bool is_more = n + 1 < w.count;
    if (is_more || !ROWS) near.advance<L::nears>();
    if (ROWS) {
      wgmma_wait<1>();
      hold(queried);
      tiles.release();
      begin_values(is_more);  // at the end of what was there, for nothing
      if (!is_last) wgmma_wait<1>();
    }
    if (!ROWS || is_last) drain();
    pin(S);
    hold(written);
    tiles.release();
  };
  // A product stays under way from step to step only where the compiler sees both: loops begin and end with none.
  int n = 0;
#pragma unroll 1
  for (; n + L::together <= w.count; n += L::together)
#pragma unroll
    for (int i = 0; i < L::together; i++) step(n + i, i + 1 == L::together);
#pragma unroll 1
  for (; n < w.count; n++) step(n, true);
  if (PART == TRANSITION) {
    u16 *to = segment_transition<K>(t, w.segment, row / 64);
#pragma unroll
    for (int n = 0; n < K / 8; n++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float x = S[n][h * 2], z = S[n][h * 2 + 1];
        const u32 high = pack2(x, z);
        u16 *place = to + n / 8 * PANEL + at<64>(warp * 16 + g + h * 8, n % 8 * 8 + c);
        *(u32 *)place = high;
        *(u32 *)(place + 64 * K) = pack2(x - low_of(high), z - high_of(high));
      }
    return;
  }
  if (w.segment + 1 < t.segments) {
    // The second launch has no use for what its own segments leave.
    if (PART == OUTPUTS && w.segment > 0) return;
    store_state<K>(w.state(t, w.segment, K), S);
  } else if (p.d_initial) {
    visit_state<K>(p, column, [&](int n, int e, long long i) { p.d_initial[i] = S[n][e]; });
  }
}

template <int K, DeltaSource SOURCE, BackPart PART>
DEV void run_part(const DeltaTileArgs &t, int segment, unsigned char *memory) {
  const BackSegment w(t, segment);
  if (threadIdx.x == 128)
    bring<K, SOURCE, PART>(t, w, memory);
  else if (threadIdx.x < 128)
    walk_back<K, SOURCE, PART>(t, w, memory);
}

/// Grid (⌈V / 64⌉, B·H), DeltaBackLayout's threads, its bytes + 1,024 of shared memory; of segments the first launch
/// has (⌈V / 64⌉ + K / 64, B·H, segments − 1) blocks, the second (⌈V / 64⌉, B·H, segments − 1).
/// Reads records, q and k of RAW, dy, d_final; writes dv, state_gradients, and d_initial where given.
template <int K, DeltaSource SOURCE, bool FIRST>
DEV void delta_tiles_back(const DeltaTileArgs &t) {
  typedef DeltaBackLayout<K> L;
  SHARED(raw);
  unsigned char *memory = raw + ((1024 - (shared_address(raw) & 1023)) & 1023);
  if (threadIdx.x == 0) BackBarriers<L>(memory).begin();
  __syncthreads();
  const int z = blockIdx.z;
  if constexpr (FIRST) {
    const bool is_transition = blockIdx.x >= (t.m.values + 63) / 64;
    if (is_transition) {
      if (z > 0) run_part<K, SOURCE, TRANSITION>(t, z, memory);
    } else if (z > 0) {
      run_part<K, SOURCE, LOCAL>(t, z, memory);
    } else {
      run_part<K, SOURCE, OUTPUTS>(t, 0, memory);
    }
  } else {
    run_part<K, SOURCE, OUTPUTS>(t, t.segments > 1 ? z + 1 : 0, memory);
  }
  __syncwarp();
}

#define DELTA_BACK(NAME, K, SOURCE, FIRST)                                                             \
  ENTRY_BLOCKS(delta_rule_tiles_back##NAME##_k##K, DeltaTileArgs, (DeltaBackLayout<K>::threads),        \
               (DeltaBackLayout<K>::blocks), delta_tiles_back<K, SOURCE, FIRST>(args))
#define DELTA_BACK_SIZE(K)              \
  DELTA_BACK(, K, CHANNELS, false)      \
  DELTA_BACK(_first, K, CHANNELS, true) \
  DELTA_BACK(_raw, K, RAW, false)       \
  DELTA_BACK(_raw_first, K, RAW, true)
#define DELTA_BACK_OF(K) DELTA_BACK_SIZE(K)
DELTA_BACK_OF(GYRE_KEYS)

#endif
