// Linear attention with one decay for all channels, for Hopper, in one pass over q, k and v that keeps
// nothing for a gradient: bfloat16, keys of up to 64 or 128 channels, values by 64 columns.
//
// A block of threads owns 64 value columns of a head's state and goes through its chunks. One warp
// brings tiles, one makes gates and stabilisers of the chunks to come, four keep the state and run ahead,
// eight make outputs, four of them every second chunk: the state stays in registers and goes to shared
// memory as the operand of a chunk's outputs, scores and their decays stay in registers.
// Rows of queries are decayed after their product with the state, keys as they become an operand. The
// normaliser z (chunk_normalizer.cuh) is a state of one column, sums of rows are products with ones.
//
// Where heads are too few for the card, tokens are cut into segments: `states` gives what each would
// leave if nothing entered it, and who goes through a segment first adds up those before it.
// Variants: GYRE_KEYS=64,128
#include "chunk_normalizer.cuh"
#include "wgmma.cuh"

/// gyre_linear_tile_args
struct LinearTileArgs {
  gyre_tensor_map q, k, v;
  MixerArgs m;
  float *segment_states;  // [B·H, ⌈V / 64⌉, segments − 1, K / 64 · 4352] as threads hold them
  two *segment_gates;     // [B·H, segments]: log2 of a segment's decay, m at its end
  int segments, segment_chunks;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

enum { OUTPUT_GROUPS = 2 };

/// A chunk's gates, beside its tiles.
struct TileGates {
  ScalarDecays decays;
  float bound[64];  // e^−m
  int is_closed;    // some pairs have a reset or a decay of 0 between them
};

template <int K, bool OUTPUTS>
struct TilesLayout {
  static constexpr int groups = OUTPUTS ? 1 + OUTPUT_GROUPS : 1, threads = groups * 128 + (OUTPUTS ? 128 : 64);
  static constexpr int panels = K / 64, tiles = panels * (OUTPUTS ? 2 : 1) + 1;
  static constexpr int keys = OUTPUTS ? panels : 0;  // first panel
  static constexpr int copied = tiles * PANEL * 2, stage = copied + 2048;
  static constexpr int stages = K == 64 ? 5 : 4;
  // States at chunks' starts, z behind each.
  static constexpr int slots = OUTPUTS ? (K == 64 ? 3 : 2) : 0, vector = panels * PANEL * 2;
  static constexpr int slot = vector + panels * 1024;
  static constexpr int ones = stages * stage, states = ones + 1024, y = states + slots * slot;
  static constexpr int barriers = y + (groups - 1) * PANEL * 2, bytes = barriers + (stages + slots) * 16;
};

/// Who is done with what: tiles and gates of a chunk, and the state at its start.
template <class L>
struct TileBarriers {
  u64 *full, *empty, *kept, *used;
  DEV_MEMBER TileBarriers(unsigned char *memory) {
    full = (u64 *)(memory + L::barriers);
    empty = full + L::stages;
    kept = empty + L::stages;
    used = kept + L::slots;
  }
  DEV_MEMBER void begin() const {
    for (int i = 0; i < L::stages; i++) {
      barrier_init(full + i, 1 + WARP);
      barrier_init(empty + i, (L::slots ? 8 : 4) * WARP);
    }
    for (int i = 0; i < L::slots; i++) {
      barrier_init(kept + i, 4 * WARP);
      barrier_init(used + i, 4 * WARP);
    }
    barrier_fence();
  }
};

/// This block's part of the problem: one segment, or as many as leave each block of the grid its share.
struct Segment {
  int row, batch, head, segment, first, count;
  DEV_MEMBER Segment(const LinearTileArgs &t, bool outputs) {
    row = blockIdx.y;
    batch = row / t.m.heads;
    head = row % t.m.heads;
    const int each = outputs ? (t.segments + gridDim.z - 1) / gridDim.z : 1, chunks = each * t.segment_chunks;
    segment = blockIdx.z * each;
    first = segment * t.segment_chunks;
    const int rest = t.m.chunks - first;
    count = rest < chunks ? rest : chunks;
  }
  DEV_MEMBER bool is_last(const LinearTileArgs &t) const { return first + count == t.m.chunks; }
  DEV_MEMBER float *states(const LinearTileArgs &t, int segment, int size) const {
    return t.segment_states +
           (((long long)row * gridDim.x + blockIdx.x) * (t.segments - 1) + segment) * size;
  }
  /// Goes through segments before this one from m on: `before` and `after` are the factors of what entered
  /// a segment and of what it adds.
  template <class F>
  DEV_MEMBER float enter(const LinearTileArgs &t, F each) const {
    const bool is_stabilized = t.m.n.input_gate;
    float m = is_stabilized && t.m.n.initial_max ? t.m.n.initial_max[row] * 1.4426950408889634f : 0.0f;
    for (int i = 0; i < segment; i++) {
      const two gates = t.segment_gates[(long long)row * t.segments + i];
      const float next = is_stabilized ? larger(m + gates.x, gates.y) : 0.0f;
      const float rest = m + gates.x - next, added = gates.y - next;
      each(i, exp2_of(rest < 0.0f ? rest : 0.0f), is_stabilized ? exp2_of(added < 0.0f ? added : 0.0f) : 1.0f);
      m = is_stabilized ? next : 0.0f;
    }
    return m;
  }
};

/// One warp: what the gates make of each chunk.
template <class L, bool OUTPUTS>
DEV void make_gates(const LinearTileArgs &t, const Segment &w, unsigned char *memory, const TileBarriers<L> &b) {
  const MixerArgs &p = t.m;
  const int lane = threadIdx.x & 31;
  GatePair next;
  next.fetch(p, w.batch, w.head, w.first * CHUNK);
  float m = p.n.input_gate ? -1e30f : 0.0f, fall = 0.0f;
  if (OUTPUTS) m = w.enter(t, [](int, float, float) {});
  Ring ring;
  for (int n = 0; n < w.count; n++) {
    GatePair x = next;
    const int start = (w.first + n) * CHUNK;
    if (n + 1 < w.count) next.fetch(p, w.batch, w.head, start + CHUNK);
    barrier_wait(b.empty + ring.stage, ring.parity ^ 1);
    TileGates &gates = *(TileGates *)(memory + ring.stage * L::stage + L::copied);
    float after[2];
    const float decay = gates.decays.fill(p, x, start, m, after);
    gates.bound[lane * 2] = exp2_of(-after[0]);
    gates.bound[lane * 2 + 1] = exp2_of(-after[1]);
    if (lane == 0) gates.is_closed = decay <= -1e30f;
    arrive_as_warp(b.full + ring.stage);
    m = __shfl_sync(0xffffffffu, after[1], 31);
    fall += decay;
    ring.advance<L::stages>();
  }
  if (lane || blockIdx.x) return;
  if (!OUTPUTS) t.segment_gates[(long long)w.row * t.segments + w.segment] = {fall, m};
  if (OUTPUTS && p.n.final_max && w.is_last(t)) p.n.final_max[w.row] = m * 0.6931471805599453f;
}

/// One thread: asks for the tiles of each chunk.
template <int K, class L, bool OUTPUTS>
DEV void bring(const LinearTileArgs &t, const Segment &w, unsigned char *memory, const TileBarriers<L> &b) {
  const int key_head = w.head / (t.m.heads / t.m.key_heads);
  Ring ring;
  for (int n = 0; n < w.count; n++) {
    u16 *to = (u16 *)(memory + ring.stage * L::stage);
    u64 *full = b.full + ring.stage;
    const int start = (w.first + n) * CHUNK;
    barrier_wait(b.empty + ring.stage, ring.parity ^ 1);
    proxy_fence();  // keys were read in the ordinary way
    barrier_expect(full, L::copied);
#pragma unroll
    for (int i = 0; i < L::panels; i++) {
      if (OUTPUTS) load_box(to + i * PANEL, t.q, i * 64, key_head, start, w.batch, full);
      load_box(to + (L::keys + i) * PANEL, t.k, i * 64, key_head, start, w.batch, full);
    }
    load_box(to + (L::keys + L::panels) * PANEL, t.v, blockIdx.x * 64, w.head, start, w.batch, full);
    ring.advance<L::stages>();
  }
}

/// Scores times the decays between their tokens; zeros above the diagonal.
template <bool CLOSED>
DEV void decay_scores(float (&s)[8][4], const ScalarDecays &d, int warp, int g, int c) {
  const int i = warp * 16 + g;
  const float row[2] = {d.row[i], d.row[i + 8]};
#pragma unroll
  for (int n = 0; n < 8; n++) {
    if (n / 2 > warp) {
      s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
      continue;
    }
    const two column = *(const two *)(d.column + n * 8 + c);
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const float x = row[e >> 1] - (e & 1 ? column.y : column.x);
      s[n][e] *= exp2_of(x < 0.0f ? x : 0.0f);
      if (CLOSED && d.closed[i + (e >> 1) * 8] != d.closed[n * 8 + c + (e & 1)]) s[n][e] = 0.0f;
    }
    if (n / 2 == warp)
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (n * 8 + c + (e & 1) > i + (e >> 1) * 8) s[n][e] = 0.0f;
  }
}

/// The state of one block as its four warps hold it: keys as rows, z as a column.
template <int K, bool NORM>
struct TileState {
  static constexpr int P = K / 64, SIZE = P * 4352;
  float S[P][8][4], z[P][1][4];
  int warp, g, c;

  DEV_MEMBER void begin() {
    const int lane = threadIdx.x & 31;
    warp = threadIdx.x >> 5;
    g = lane >> 2;
    c = (lane & 3) * 2;
#pragma unroll
    for (int m = 0; m < P; m++) {
      clear(S[m]);
      clear(z[m]);
    }
  }
  DEV_MEMBER int key(int m, int e) const { return m * 64 + warp * 16 + g + (e >> 1) * 8; }
  /// A row of B·H: each key with this thread's part of z and its index in [B·H, K], each pair of values with its
  /// index in [B·H, K, V].
  template <class Z, class Pair>
  DEV_MEMBER void visit(const MixerArgs &p, int row, int column, Z key_of, Pair pair_of) {
    const long long keys = (long long)row * p.keys;
#pragma unroll
    for (int m = 0; m < P; m++)
#pragma unroll
      for (int e = 0; e < 4; e += 2) {
        const int k = key(m, e);
        if (k >= p.keys) continue;
        if (NORM) key_of(z[m][0][e], keys + k);
#pragma unroll
        for (int n = 0; n < 8; n++) {
          const int v = column + n * 8 + c;
          if (v < p.values) pair_of(S[m][n][e], S[m][n][e + 1], (keys + k) * p.values + v);
        }
      }
  }
  DEV_MEMBER void read(const MixerArgs &p, int row, int column) {
    visit(
        p, row, column,
        [&](float &x, long long i) {
          if (p.n.initial_vector) x = p.n.initial_vector[i];
        },
        [&](float &x, float &y, long long i) {
          if (!p.initial) return;
          const two pair = load_two(p.initial, i);
          x = pair.x;
          y = pair.y;
        });
  }
  DEV_MEMBER void write(const MixerArgs &p, int row, int column) {
    visit(
        p, row, column,
        [&](float x, long long i) {
          if (p.n.final_vector && column == 0 && c == 0) p.n.final_vector[i] = x;
        },
        [&](float x, float y, long long i) {
          if (p.final) store_two(p.final, i, x, y);
        });
  }
  /// Between the passes: every thread its own.
  DEV_MEMBER void keep(float *to) const {
#pragma unroll
    for (int m = 0; m < P; m++) {
#pragma unroll
      for (int n = 0; n < 8; n++)
        ((float4 *)to)[(m * 8 + n) * 128 + threadIdx.x] = {S[m][n][0], S[m][n][1], S[m][n][2], S[m][n][3]};
      if (NORM) ((two *)(to + P * 4096))[m * 128 + threadIdx.x] = {z[m][0][0], z[m][0][2]};
    }
  }
  DEV_MEMBER void add(const float *from, float before, float after) {
#pragma unroll
    for (int m = 0; m < P; m++) {
#pragma unroll
      for (int n = 0; n < 8; n++) {
        const float4 x = ((const float4 *)from)[(m * 8 + n) * 128 + threadIdx.x];
        S[m][n][0] = S[m][n][0] * before + x.x * after;
        S[m][n][1] = S[m][n][1] * before + x.y * after;
        S[m][n][2] = S[m][n][2] * before + x.z * after;
        S[m][n][3] = S[m][n][3] * before + x.w * after;
      }
      if (NORM) {
        const two x = ((const two *)(from + P * 4096))[m * 128 + threadIdx.x];
        z[m][0][0] = z[m][0][0] * before + x.x * after;
        z[m][0][2] = z[m][0][2] * before + x.y * after;
      }
    }
  }
  DEV_MEMBER void scale(float f) {
#pragma unroll
    for (int m = 0; m < P; m++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
#pragma unroll
        for (int n = 0; n < 8; n++) S[m][n][e] *= f;
        if (NORM) z[m][0][e] *= f;
      }
  }
  DEV_MEMBER void settle() {
#pragma unroll
    for (int m = 0; m < P; m++) {
      pin(S[m]);
      if (NORM) pin(z[m]);
    }
  }
  /// As operands: [key, value] in bf16, and z as rows of a tile, even ones bf16 of it, odd ones what that
  /// leaves.
  DEV_MEMBER void publish(u16 *state, u16 *vector) const {
#pragma unroll
    for (int m = 0; m < P; m++) {
      store_tile<64>(state + m * PANEL, warp * 16, 0, S[m]);
      if (NORM)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const float x = z[m][0][h * 2];
          const u32 high = pack2(x, 0.0f);
          u16 *to = vector + m * 512;
          to[at<64>(c, warp * 16 + g + h * 8)] = (u16)high;
          to[at<64>(c + 1, warp * 16 + g + h * 8)] = bits_of(x - low_of(high));
        }
    }
  }
};

/// Four warps: the state from chunk to chunk.
template <int K, class L, bool NORM, bool OUTPUTS>
DEV void keep_state(const LinearTileArgs &t, const Segment &w, unsigned char *memory, const TileBarriers<L> &b) {
  constexpr int P = L::panels;
  const int column = blockIdx.x * 64;
  TileState<K, NORM> state;
  state.begin();
  if (OUTPUTS) {
    state.read(t.m, w.row, column);
    w.enter(t, [&](int i, float before, float after) {
      state.add(w.states(t, i, state.SIZE), before, after);
    });
  }
  const u64 one = panel_operand((const u16 *)(memory + L::ones));
  Ring ring, slot;
#pragma unroll 1
  for (int n = 0; n < w.count; n++) {
    const u16 *tile = (const u16 *)(memory + ring.stage * L::stage);
    const TileGates &gates = *(const TileGates *)(tile + L::copied / 2);
    const u16 *k = tile + L::keys * PANEL;
    const u64 values = panel_operand(k + P * PANEL);
    if constexpr (OUTPUTS) {
      unsigned char *to = memory + L::states + slot.stage * L::slot;
      barrier_wait(b.used + slot.stage, slot.parity ^ 1);
      state.publish((u16 *)to, (u16 *)(to + L::vector));
      proxy_fence();
      arrive_as_warp(b.kept + slot.stage);
      slot.advance<L::slots>();
    }
    barrier_wait(b.full + ring.stage, ring.parity);
    // Before any product is under way: the compiler waits for all where it sees the accumulators changed.
    state.scale(gates.decays.lead[63]);
    // Keys as they decay to the chunk's end, [key, token].
    u32 kt[P * 4][4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const two low = *(const two *)(gates.decays.tail + j * 16 + state.c),
                high = *(const two *)(gates.decays.tail + j * 16 + state.c + 8);
#pragma unroll
      for (int m = 0; m < P; m++) {
        u32(&x)[4] = kt[m * 4 + j];
        load_a_t<64>(x, k + m * PANEL, state.warp * 16, j * 16);
        x[0] = scaled(x[0], low);
        x[1] = scaled(x[1], low);
        x[2] = scaled(x[2], high);
        x[3] = scaled(x[3], high);
      }
    }
    state.settle();
    hold(kt);
    wgmma_fence();
#pragma unroll
    for (int m = 0; m < P; m++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        wgmma<1>(state.S[m], kt[m * 4 + j], values + turned_step(j), 1);
        if (NORM) wgmma<0>(state.z[m], kt[m * 4 + j], one + j * 2, 1);
      }
    wgmma_commit();
    wgmma_wait<0>();
    state.settle();
    hold(kt);
    arrive_as_warp(b.empty + ring.stage);
    ring.advance<L::stages>();
  }
  if (!OUTPUTS) state.keep(w.states(t, w.segment, state.SIZE));
  if (OUTPUTS && w.is_last(t)) state.write(t.m, w.row, column);
}

/// Four warps: outputs of every OUTPUT_GROUPS-th chunk from `group` on.
template <int K, class L, bool NORM>
DEV void write_outputs(const LinearTileArgs &t, const Segment &w, unsigned char *memory, const TileBarriers<L> &b,
                       int group) {
  constexpr int P = L::panels;
  const MixerArgs &p = t.m;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, g = lane >> 2, c = (lane & 3) * 2;
  const int column = blockIdx.x * 64;
  u16 *results = (u16 *)(memory + L::y + group * PANEL * 2);
  const u64 one = panel_operand((const u16 *)(memory + L::ones));
  const long long stride = (long long)p.heads * p.values;
  const long long y_row = (long long)w.batch * p.tokens * stride + (long long)w.head * p.values + column;
  Ring ring, slot;
  for (int i = 0; i < group; i++) {
    ring.advance<L::stages>();
    slot.advance<L::slots>();
  }
#pragma unroll 1
  for (int n = group; n < w.count; n += OUTPUT_GROUPS) {
    const u16 *tile = (const u16 *)(memory + ring.stage * L::stage);
    const TileGates &gates = *(const TileGates *)(tile + L::copied / 2);
    const u16 *k = tile + L::keys * PANEL;
    const u64 queries = panel_operand(tile), keys = panel_operand(k), values = panel_operand(k + P * PANEL);
    const unsigned char *state = memory + L::states + slot.stage * L::slot;
    const u64 before = panel_operand((const u16 *)state), vector = panel_operand((const u16 *)(state + L::vector));
    float s[8][4], o[8][4], amount[1][4];
    barrier_wait(b.full + ring.stage, ring.parity);
    barrier_wait(b.kept + slot.stage, slot.parity);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < K / 16; i++) wgmma<0>(s, queries + panel_step(i), keys + panel_step(i), i);
    wgmma_commit();
#pragma unroll
    for (int i = 0; i < K / 16; i++) {
      wgmma<1>(o, queries + panel_step(i), before + turned_step(i), i);
      if (NORM) wgmma<0>(amount, queries + panel_step(i), vector + panel_step(i, 8), i);
    }
    wgmma_commit();
    const int i = warp * 16 + g;
    const float lead[2] = {gates.decays.lead[i], gates.decays.lead[i + 8]};
    const float bound[2] = {gates.bound[i], gates.bound[i + 8]};
    wgmma_wait<1>();
    pin(s);
    if (gates.is_closed)
      decay_scores<true>(s, gates.decays, warp, g, c);
    else
      decay_scores<false>(s, gates.decays, warp, g, c);
    u32 weights[4][4];
#pragma unroll
    for (int j = 0; j < 4; j++) as_a(weights[j], s[j * 2], s[j * 2 + 1]);
    wgmma_wait<0>();
    pin(o);
    if (NORM) pin(amount);
    arrive_as_warp(b.used + slot.stage);
#pragma unroll
    for (int e = 0; e < 4; e++) {
#pragma unroll
      for (int m = 0; m < 8; m++) o[m][e] *= lead[e >> 1];
      if (NORM) amount[0][e] *= lead[e >> 1];
    }
    pin(o);
    if (NORM) pin(amount);
    hold(weights);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; j++) {
      wgmma<1>(o, weights[j], values + turned_step(j), 1);
      if (NORM) wgmma<0>(amount, weights[j], one + j * 2, 1);
    }
    wgmma_commit();
    wgmma_wait<0>();
    pin(o);
    if (NORM) pin(amount);
    hold(weights);
    arrive_as_warp(b.empty + ring.stage);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float f = p.scale;
      if (NORM) f *= reciprocal(Divisor(p.n, (amount[0][h * 2] + amount[0][h * 2 + 1]) * f, bound[h]).value);
#pragma unroll
      for (int m = 0; m < 8; m++)
        *(u32 *)(results + at<64>(i + h * 8, m * 8 + c)) = pack2(o[m][h * 2] * f, o[m][h * 2 + 1] * f);
    }
    __syncwarp();
#pragma unroll
    for (int m = 0; m < 4; m++) {
      const int row = warp * 16 + m * 4 + (lane >> 3), v = (lane & 7) * 8, token = (w.first + n) * CHUNK + row;
      const uint4 x = *(const uint4 *)(results + at<64>(row, v));
      if (token < p.tokens && column + v < p.values)
        *(uint4 *)((bf16 *)p.y + y_row + token * stride + v) = x;
    }
    for (int i = 0; i < OUTPUT_GROUPS; i++) {
      ring.advance<L::stages>();
      slot.advance<L::slots>();
    }
  }
}

/// Grid (⌈V / 64⌉, B·H, segments before the last block's without OUTPUTS, else ⌈segments / n⌉ for blocks of n),
/// TilesLayout's threads, gyre_cuda_linear_tiles_shared bytes.
template <int K, bool NORM, bool OUTPUTS>
DEV void linear_tiles(const LinearTileArgs &t) {
  typedef TilesLayout<K, OUTPUTS> L;
  SHARED(raw);
  unsigned char *memory = raw + ((1024 - (shared_address(raw) & 1023)) & 1023);
  const TileBarriers<L> b(memory);
  if (threadIdx.x == 0) b.begin();
  if (threadIdx.x < 128) {
    ((u64 *)(memory + L::ones))[threadIdx.x] = threadIdx.x >> 4 & 1 ? 0 : 0x3f803f803f803f80ull;
    proxy_fence();
  }
  __syncthreads();
  const Segment w(t, OUTPUTS);
  const int group = threadIdx.x >> 7;
  if (group == L::groups) {
    if constexpr (OUTPUTS) fewer_registers<72>();
    if (threadIdx.x % 128 / 32 == 1)
      make_gates<L, OUTPUTS>(t, w, memory, b);
    else if (threadIdx.x % 128 == 0)
      bring<K, L, OUTPUTS>(t, w, memory, b);
    return;
  }
  if constexpr (OUTPUTS) more_registers<144>();
  if (group == 0) return keep_state<K, L, NORM, OUTPUTS>(t, w, memory, b);
  if constexpr (OUTPUTS) write_outputs<K, L, NORM>(t, w, memory, b, group - 1);
}

#define LINEAR_TILES(NAME, K, NORM, OUTPUTS)                                                   \
  ENTRY_BLOCKS(linear_attention_tiles##NAME##_k##K, LinearTileArgs,                           \
               (TilesLayout<K, OUTPUTS>::threads), 1, linear_tiles<K, NORM, OUTPUTS>(args))
#define LINEAR_TILES_SIZE(K)             \
  LINEAR_TILES(, K, false, true)         \
  LINEAR_TILES(_norm, K, true, true)     \
  LINEAR_TILES(_states, K, false, false) \
  LINEAR_TILES(_states_norm, K, true, false)
#define LINEAR_TILES_OF(K) LINEAR_TILES_SIZE(K)
LINEAR_TILES_OF(GYRE_KEYS)

#endif
