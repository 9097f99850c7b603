// walk: the state from chunk to chunk, forward or backward in time. A warp owns 16 value columns of
// a head's state, transposed ([16 values, K]) in the accumulators of its products, so that nothing
// but the copies of the next records is shared between warps.
#pragma once
#include "chunk_normalizer.cuh"

#if GYRE_BULK
enum { SHARED_LIMIT = 225 * 1024 };
#else
enum { SHARED_LIMIT = 160 * 1024 };
#endif

/// What a launch makes of a walk: all of it, what its segments but the last would leave if nothing
/// entered them, or all of it with those states, segments side by side.
enum WalkPart { WHOLE, STATES, SEGMENTS };

/// A walk of linear attention cut into segments, for few heads and many tokens.
struct SegmentArgs {
  MixerArgs m;
  float *states;  // [B·H, ⌈V / 16⌉, segments − 1, 16 KP] as lanes hold them
  float *decays;  // [B·H, segments − 1, KP]: of each segment, all its chunks
  int segments, steps;  // none empty; the chunks of each but the last
};

/// The part of a walk that a block of threads takes.
struct WalkSteps {
  int first, count, segment, segments;
  float *states, *decays;
  DEV_MEMBER WalkSteps(const MixerArgs &p)
      : first(0), count(p.chunks), segment(0), segments(1), states(nullptr), decays(nullptr) {}
  DEV_MEMBER WalkSteps(const SegmentArgs &w)
      : first(blockIdx.z * w.steps), segment(blockIdx.z), segments(w.segments), states(w.states), decays(w.decays) {
    count = w.m.chunks - first < w.steps ? w.m.chunks - first : w.steps;
  }
  /// A lane's part of what a segment leaves, every 32nd: 16 values of a row.
  DEV_MEMBER float4 *state(int i, int v_block, int v_blocks, int keys) const {
    return (float4 *)states + (((long long)blockIdx.y * v_blocks + v_block) * (segments - 1) + i) * keys * 4 +
           (threadIdx.x & 31);
  }
  DEV_MEMBER float *decay(int i, int keys) const {
    return decays + ((long long)blockIdx.y * (segments - 1) + i) * keys;
  }
};
DEV const MixerArgs &mixer_of(const MixerArgs &args) {
  return args;
}
DEV const MixerArgs &mixer_of(const SegmentArgs &args) {
  return args.m;
}

template <int RULE, int K, int VT, bool BACK, bool NORM, int PART = WHOLE>
struct WalkLayout {
  typedef Record<RULE, K> R;
  // What the pass reads of a record is contiguous: all of it, or from W (without W: from Q̃) on. States
  // of segments need K̃ and the decays behind Q̃.
  static constexpr bool is_split = PART == STATES && !BACK;
  static constexpr int from = BACK && RULE != BETA ? R::W * 2 : is_split ? R::KT * 2 : 0;
  static constexpr int copied = is_split ? 128 * K + K * 4 : R::D * 2 + K * 4 - from;
  static constexpr int decays = copied - K * 4;
  static constexpr int rows = (copied + 1023) / 1024 * 1024;  // where the rows of v or dO start
  static constexpr int sums = rows + (64 * VT * 2 + 1023) / 1024 * 1024;  // of rows, of columns
  static constexpr int summed = NORM ? (BACK ? 0 : 512) + K * 4 : 0;
  static constexpr int stage = sums + (summed + 1023) / 1024 * 1024;
  // Segments in blocks of threads side by side where two stages of two fit.
  static constexpr int half = (SHARED_LIMIT / 2 - 1024) / stage;
  static constexpr int fit = PART != WHOLE && half >= 2 ? half : (SHARED_LIMIT - 1024) / stage;
  static constexpr int stages = fit > 4 ? 4 : fit < 2 ? 2 : fit;
  static constexpr int bytes = stages * stage + 1024;
};

/// The stages of shared memory that the records and the rows of v or dO pass through.
template <int RULE, int K, int VT, bool BACK, bool NORM, int THREADS, typename E, int PART = WHOLE>
struct Stages {
  typedef WalkLayout<RULE, K, VT, BACK, NORM, PART> L;
  typedef Record<RULE, K> R;
  const MixerArgs &p;
  unsigned char *memory;
  const unsigned char *records;
  const E *values;
  u64 *barriers;
  long long row_base, token_stride;
  int v_tile, first, count;

  DEV_MEMBER Stages(const MixerArgs &args, const WalkSteps &w, unsigned char *shared)
      : p(args), memory(shared), values((const E *)(BACK ? args.dy : args.v)), first(w.first), count(w.count) {
    const int batch = blockIdx.y / p.heads, head = blockIdx.y % p.heads;
    v_tile = blockIdx.x * VT;
    records = p.records + (long long)blockIdx.y * p.chunks * R::bytes + L::from;
    barriers = (u64 *)(memory + L::stages * L::stage);
    token_stride = (long long)p.heads * p.values;
    row_base = (long long)batch * p.tokens * token_stride + (long long)head * p.values + v_tile;
    if (threadIdx.x == 0) {
      for (int i = 0; i < L::stages; i++) barrier_init(barriers + i);
      barrier_fence();
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < L::stages - 1; i++) fetch(i);
  }
  DEV_MEMBER int chunk(int step) const {
    return BACK ? p.chunks - 1 - first - step : first + step;
  }
  DEV_MEMBER unsigned char *at_step(int step) const { return memory + step % L::stages * L::stage; }
  DEV_MEMBER void fetch(int step) {
    if (step < count) {
      constexpr int bytes = L::is_split ? L::decays : L::copied;
      unsigned char *to = at_step(step);
      const unsigned char *from = records + (long long)chunk(step) * R::bytes;
      if (GYRE_BULK) {
        if (threadIdx.x == 0) bulk_copy(to, from, bytes, barriers + step % L::stages);
      } else {
        for (int i = threadIdx.x * 16; i < bytes; i += THREADS * 16)
          copy16(to + i, from + i, true);
      }
      if (L::is_split)
        for (int i = threadIdx.x * 16; i < K * 4; i += THREADS * 16)
          copy16(to + L::decays + i, from + R::D * 2 - L::from + i, true);
      const int start = chunk(step) * CHUNK;
      load_rows<VT>((u16 *)(to + L::rows), values, row_base + start * token_stride, token_stride,
                    p.tokens - start < CHUNK ? p.tokens - start : CHUNK, p.values - v_tile,
                    THREADS);
      if (NORM) {
        const long long place = (long long)blockIdx.y * p.chunks + chunk(step);
        const float *columns = (BACK ? p.n.query_sums : p.n.key_sums) + place * K;
        constexpr int rows = L::summed - K * 4;
        for (int i = threadIdx.x * 16; i < L::summed; i += THREADS * 16)
          copy16(to + L::sums + i,
                 i < rows ? (const unsigned char *)(p.n.row_sums + place * 128) + i
                          : (const unsigned char *)columns + (i - rows),
                 true);
      }
    }
    copy_commit();
  }
  /// Waits for the step's stage, and for all warps to be done with the one before; fetches ahead.
  DEV_MEMBER void advance(int step) {
    if (GYRE_BULK) barrier_wait(barriers + step % L::stages, step / L::stages & 1);
    copy_wait<L::stages - 2>();
    if (GYRE_BULK) proxy_fence();  // what was read of the stage before, from the copy into it
    __syncthreads();
    fetch(step + L::stages - 1);
  }
  /// Rows of an array like the values, from the A operand [value, token] of 16 values and tokens.
  DEV_MEMBER void store_turned(void *to, const u32 (&a)[4], int value, int t) const {
    const int lane = threadIdx.x & 31, g = lane >> 2, c = (lane & 3) * 2;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const u32 x = turned(a[i]);
      const int token = t + g + (i >> 1) * 8, column = value + (i & 1) * 8 + c;
      if (token < p.tokens && v_tile + column < p.values)
        store_packed((E *)to, row_base + token * token_stride + column, x);
    }
  }
};

/// Grid (⌈V / VT⌉, B·H), 2 VT threads, WalkLayout::bytes of shared memory.
/// Forward: reads records, v, initial; writes y, and final, states, written where given.
/// Backward: reads records, dy, d_final; writes state_gradients, and d_initial where given, dv of the
/// delta rule.
/// NORM: with the normaliser's vector beside the state, linear attention only; dy is its dn.
/// In segments, linear attention without NORM only, the grid has as many, STATES one less; STATES writes
/// nothing but states and decays of segments.
template <int RULE, int K, int VT, bool BACK, typename E, bool NORM = false, int PART = WHOLE, typename Args>
DEV void walk(const Args &args) {
  typedef WalkLayout<RULE, K, VT, BACK, NORM, PART> L;
  typedef Record<RULE, K> R;
  constexpr int STEPS = K / 16, THREADS = VT * 2;
  SHARED(memory);
  const MixerArgs &p = mixer_of(args);
  const WalkSteps w(args);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = (lane & 3) * 2;
  const int v_tile = blockIdx.x * VT, mine = warp * 16;
  Stages<RULE, K, VT, BACK, NORM, THREADS, E, PART> stages(p, w, memory);

  float S[K / 8][4];
  const float *begin = PART == STATES ? nullptr : BACK ? p.d_final : p.initial;
  const long long state_at = (long long)blockIdx.y * p.keys * p.values;
#pragma unroll
  for (int n = 0; n < K / 8; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int key = n * 8 + c + (e & 1), value = v_tile + mine + g + (e >> 1) * 8;
      S[n][e] = begin && key < p.keys && value < p.values
                    ? begin[state_at + (long long)key * p.values + value]
                    : 0.0f;
    }
  uint4 *keep = PART == STATES ? nullptr : (uint4 *)(BACK ? p.state_gradients : p.states);
  const int v_blocks = (p.values + 15) / 16, v_block = (v_tile + mine) / 16;
  if (PART == SEGMENTS && v_block < v_blocks)
#pragma unroll 1
    for (int i = 0; i < w.segment; i++) {
      const float4 *local = w.state(i, v_block, v_blocks, K);
      const float *decay = w.decay(i, K);
#pragma unroll
      for (int n = 0; n < K / 8; n++) {
        const float4 x = local[n * 32];
        const two f = *(const two *)(decay + n * 8 + c);
        S[n][0] = S[n][0] * f.x + x.x;
        S[n][1] = S[n][1] * f.y + x.y;
        S[n][2] = S[n][2] * f.x + x.z;
        S[n][3] = S[n][3] * f.y + x.w;
      }
    }
  float decay = 1.0f;  // of one key over the segment, STATES only
  WalkVector<NORM ? K : 16, BACK> vector;
  if (NORM) vector.begin(p);
  float *const amounts = NORM && !BACK ? amounts_of(p) : nullptr;

#pragma unroll 1
  for (int step = 0; step < w.count; step++) {
    const int chunk = stages.chunk(step);
    unsigned char *stage = stages.at_step(step);
    const u16 *tiles = (const u16 *)(stage - L::from);  // the record's offsets hold
    const u16 *rows = (const u16 *)(stage + L::rows);
    const float *d = (const float *)(stage + L::decays), *sums = (const float *)(stage + L::sums);
    u32 s[STEPS][4];
#pragma unroll
    for (int i = 0; i < STEPS; i++) as_a(s[i], S[i * 2], S[i * 2 + 1]);
    if (keep && v_block < v_blocks) {
      uint4 *to = keep +
                  (((long long)blockIdx.y * p.chunks + chunk) * v_blocks + v_block) * STEPS * 32 +
                  lane;
#pragma unroll
      for (int i = 0; i < STEPS; i++) to[i * 32] = {s[i][0], s[i][1], s[i][2], s[i][3]};
    }
    if (NORM) {
      if (!BACK) vector.split();
      vector.keep(BACK ? p.n.vector_gradients : p.n.vectors,
                  ((long long)blockIdx.y * p.chunks + chunk) * K, K);
    }
    stages.advance(step);

    if (PART == STATES && threadIdx.x < K) decay *= d[threadIdx.x];

    // Rows of the values, as A: [value, token]. As B, [token, value], they are the same registers.
    u32 va[4][4], ya[4][4];
    const auto load_values = [&] {
#pragma unroll
      for (int j = 0; j < 4; j++) load_a_t<VT>(va[j], rows, mine, j * 16);
    };
    if (RULE == BETA) load_values();
    // What the state's own term writes: Y = W S, or X = B̂ dS; of the delta rule Y = V + W S, or
    // dV = P̃ᵀ dO + K̃ dS.
    if (RULE != LINEAR) {
      float y[8][4];
      clear(y);
      if (RULE == BETA && !BACK)
#pragma unroll
        for (int j = 0; j < 4; j++) from_a(y[j * 2], y[j * 2 + 1], va[j]);
      const u16 *w = tiles + (!BACK ? R::W : RULE == BETA ? R::KT : R::B);
#pragma unroll
      for (int i = 0; i < STEPS; i++)
#pragma unroll
        for (int n = 0; n < 4; n++) {
          u32 b[4];
          load_b<K>(b, w, n * 16, i * 16);
          mma(y[n * 2], s[i], b[0], b[1]);
          mma(y[n * 2 + 1], s[i], b[2], b[3]);
        }
      if (RULE == BETA && BACK)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
          for (int n = 0; n <= j; n++) {
            u32 b[4];
            load_b_t<64>(b, tiles + R::P, n * 16, j * 16);
            mma(y[n * 2], va[j], b[0], b[1]);
            mma(y[n * 2 + 1], va[j], b[2], b[3]);
          }
#pragma unroll
      for (int j = 0; j < 4; j++) as_a(ya[j], y[j * 2], y[j * 2 + 1]);
    }
    if (RULE != BETA) load_values();
#pragma unroll
    for (int n = 0; n < K / 8; n++) {
      const two f = *(const two *)(d + n * 8 + c);
      S[n][0] *= f.x;
      S[n][1] *= f.y;
      S[n][2] *= f.x;
      S[n][3] *= f.y;
    }
    const u16 *direct = tiles + (BACK ? R::Q : R::KT);
    const u16 *indirect = tiles + (BACK ? R::W : RULE == BETA ? R::KT : R::B);
#pragma unroll
    for (int n = 0; n < STEPS; n++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        u32 b[4];
        if (RULE != BETA || BACK) {
          load_b_t<K>(b, direct, n * 16, j * 16);
          mma(S[n * 2], va[j], b[0], b[1]);
          mma(S[n * 2 + 1], va[j], b[2], b[3]);
        }
        if (RULE != LINEAR) {
          load_b_t<K>(b, indirect, n * 16, j * 16);
          mma(S[n * 2], ya[j], b[0], b[1]);
          mma(S[n * 2 + 1], ya[j], b[2], b[3]);
        }
      }
    if (!BACK && PART != STATES) {
#pragma unroll
      for (int m = 0; m < 4; m++) {
        float o[2][4], amount[1][4];
        clear(o);
        clear(amount);
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
          u32 a[4];
          load_a<K>(a, tiles + R::Q, m * 16, i * 16);
          mma(o[0], a, s[i][0], s[i][2]);
          mma(o[1], a, s[i][1], s[i][3]);
          if (NORM) mma(amount[0], a, vector.column[NORM ? i : 0][0], vector.column[NORM ? i : 0][1]);
        }
#pragma unroll
        for (int j = 0; j <= m; j++) {
          u32 a[4];
          const u32(&x)[4] = RULE == BETA ? ya[j] : va[j];
          load_a<64>(a, tiles + R::P, m * 16, j * 16);
          mma(o[0], a, x[0], x[2]);
          mma(o[1], a, x[1], x[3]);
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const int t = chunk * CHUNK + m * 16 + g + h * 8;
          const long long row = stages.row_base + t * stages.token_stride;
          if (NORM) divide(p, o, amount[0], sums, amounts, chunk, m * 16 + g + h * 8, h);
#pragma unroll
          for (int n = 0; n < 2; n++) {
            const int value = mine + n * 8 + c;
            if (t < p.tokens && v_tile + value < p.values)
              store_two((E *)p.y, row + value, o[n][h * 2], o[n][h * 2 + 1]);
          }
        }
      }
    }
    if (void *to = BACK ? p.dv : p.written; RULE == BETA && to)
#pragma unroll
      for (int j = 0; j < 4; j++) stages.store_turned(to, ya[j], mine, chunk * CHUNK + j * 16);
    if (NORM) vector.advance(sums + (BACK ? 0 : 128), d);
  }
  copy_wait<0>();
  if (NORM)
    vector.keep(BACK ? p.n.d_initial_vector : p.n.final_vector, (long long)blockIdx.y * p.keys,
                p.keys);
  if (PART == STATES) {
    if (v_block < v_blocks) {
      float4 *to = w.state(w.segment, v_block, v_blocks, K);
#pragma unroll
      for (int n = 0; n < K / 8; n++) to[n * 32] = {S[n][0], S[n][1], S[n][2], S[n][3]};
    }
    if (blockIdx.x == 0 && threadIdx.x < K) w.decay(w.segment, K)[threadIdx.x] = decay;
    return;
  }
  if (PART == SEGMENTS && w.segment + 1 < w.segments) return;
  float *end = BACK ? p.d_initial : p.final;
  if (end)
#pragma unroll
    for (int n = 0; n < K / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int key = n * 8 + c + (e & 1), value = v_tile + mine + g + (e >> 1) * 8;
        if (key < p.keys && value < p.values)
          end[state_at + (long long)key * p.values + value] = S[n][e];
      }
}

/// The same with four warps for 16 value columns, each owning a quarter of the keys: for few heads
/// and many tokens. They exchange the state and Y through shared memory, as bf16. Grid (⌈V / VT⌉,
/// B·H), 8 VT threads, WalkLayout::bytes + TEAM_BYTES of shared memory.
template <int K, int VT>
struct TeamLayout {
  static constexpr int bytes = VT / 16 * (16 * K + 16 * 64) * 2;
};
template <int RULE, int K, int VT, bool BACK, typename E, bool NORM = false>
DEV void walk_team(const MixerArgs &p) {
  typedef WalkLayout<RULE, K, VT, BACK, NORM> L;
  typedef Record<RULE, K> R;
  constexpr int STEPS = K / 16, THREADS = VT * 8, OWN = K / 4;
  SHARED(memory);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = (lane & 3) * 2;
  const int member = warp & 3, group = warp >> 2;
  const int v_tile = blockIdx.x * VT, mine = group * 16, own = member * OWN;
  u16 *shared_state = (u16 *)(memory + L::bytes) + group * (16 * K + 16 * 64);
  u16 *shared_y = shared_state + 16 * K;
  Stages<RULE, K, VT, BACK, NORM, THREADS, E> stages(p, WalkSteps(p), memory);

  float S[OWN / 8][4];
  const float *begin = BACK ? p.d_final : p.initial;
  const long long state_at = (long long)blockIdx.y * p.keys * p.values;
#pragma unroll
  for (int n = 0; n < OWN / 8; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int key = own + n * 8 + c + (e & 1), value = v_tile + mine + g + (e >> 1) * 8;
      S[n][e] = begin && key < p.keys && value < p.values
                    ? begin[state_at + (long long)key * p.values + value]
                    : 0.0f;
    }
  uint4 *keep = (uint4 *)(BACK ? p.state_gradients : p.states);
  const int v_blocks = (p.values + 15) / 16, v_block = (v_tile + mine) / 16;
  WalkVector<NORM ? K : 16, BACK> vector;
  if (NORM) vector.begin(p);
  float *const amounts = NORM && !BACK ? amounts_of(p) : nullptr;

#pragma unroll 1
  for (int step = 0; step < p.chunks; step++) {
    const int chunk = stages.chunk(step);
    unsigned char *stage = stages.at_step(step);
    const u16 *tiles = (const u16 *)(stage - L::from);
    const u16 *rows = (const u16 *)(stage + L::rows);
    const float *d = (const float *)(tiles + R::D), *sums = (const float *)(stage + L::sums);
    store_tile<K>(shared_state, 0, own, S);
    if (NORM) {
      if (!BACK) vector.split();
      vector.keep(BACK ? p.n.vector_gradients : p.n.vectors,
                  ((long long)blockIdx.y * p.chunks + chunk) * K, K);
    }
    stages.advance(step);

    u32 s[STEPS][4];
#pragma unroll
    for (int i = 0; i < STEPS; i++) load_a<K>(s[i], shared_state, 0, i * 16);
    if (keep && v_block < v_blocks) {
      uint4 *to = keep +
                  (((long long)blockIdx.y * p.chunks + chunk) * v_blocks + v_block) * STEPS * 32 +
                  lane;
#pragma unroll
      for (int i = 0; i < STEPS; i++)
        if ((i & 3) == member) to[i * 32] = {s[i][0], s[i][1], s[i][2], s[i][3]};
    }
    u32 va[4][4];
    const auto load_values = [&] {
#pragma unroll
      for (int j = 0; j < 4; j++) load_a_t<VT>(va[j], rows, mine, j * 16);
    };
    if (RULE == BETA && BACK) load_values();
    if (RULE != LINEAR) {
      // This member's 16 tokens; two chains for each accumulator.
      float y[2][4], y_odd[2][4];
      clear(y);
      clear(y_odd);
      if (RULE == BETA && !BACK) {
        u32 v[4];
        load_a_t<VT>(v, rows, mine, member * 16);
        from_a(y[0], y[1], v);
      }
      const u16 *w = tiles + (!BACK ? R::W : RULE == BETA ? R::KT : R::B);
#pragma unroll
      for (int i = 0; i < STEPS; i++) {
        u32 b[4];
        load_b<K>(b, w, member * 16, i * 16);
        mma(i & 1 ? y_odd[0] : y[0], s[i], b[0], b[1]);
        mma(i & 1 ? y_odd[1] : y[1], s[i], b[2], b[3]);
      }
      if (RULE == BETA && BACK)
#pragma unroll
        for (int j = 0; j < 4; j++)
          if (j >= member) {
            u32 b[4];
            load_b_t<64>(b, tiles + R::P, member * 16, j * 16);
            mma(j & 1 ? y_odd[0] : y[0], va[j], b[0], b[1]);
            mma(j & 1 ? y_odd[1] : y[1], va[j], b[2], b[3]);
          }
#pragma unroll
      for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) y[n][e] += y_odd[n][e];
      store_tile<64>(shared_y, 0, member * 16, y);
    }
    if (RULE != BETA) load_values();
    float o[2][4], amount[1][4];
    if (!BACK) {
      float o_odd[2][4];
      clear(o);
      clear(o_odd);
      clear(amount);
#pragma unroll
      for (int i = 0; i < STEPS; i++) {
        u32 a[4];
        load_a<K>(a, tiles + R::Q, member * 16, i * 16);
        mma(i & 1 ? o_odd[0] : o[0], a, s[i][0], s[i][2]);
        mma(i & 1 ? o_odd[1] : o[1], a, s[i][1], s[i][3]);
        if (NORM) mma(amount[0], a, vector.column[NORM ? i : 0][0], vector.column[NORM ? i : 0][1]);
      }
      if (RULE != BETA)
#pragma unroll
        for (int j = 0; j < 4; j++)
          if (j <= member) {
            u32 a[4];
            load_a<64>(a, tiles + R::P, member * 16, j * 16);
            mma(o[0], a, va[j][0], va[j][2]);
            mma(o[1], a, va[j][1], va[j][3]);
          }
#pragma unroll
      for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) o[n][e] += o_odd[n][e];
    }
#pragma unroll
    for (int n = 0; n < OWN / 8; n++) {
      const two f = *(const two *)(d + own + n * 8 + c);
      S[n][0] *= f.x;
      S[n][1] *= f.y;
      S[n][2] *= f.x;
      S[n][3] *= f.y;
    }
    const u16 *direct = tiles + (BACK ? R::Q : R::KT);
    const u16 *indirect = tiles + (BACK ? R::W : RULE == BETA ? R::KT : R::B);
    if (RULE != BETA || BACK)
#pragma unroll
      for (int j = 0; j < 4; j++)
#pragma unroll
        for (int n = 0; n < OWN / 16; n++) {
          u32 b[4];
          load_b_t<K>(b, direct, own + n * 16, j * 16);
          mma(S[n * 2], va[j], b[0], b[1]);
          mma(S[n * 2 + 1], va[j], b[2], b[3]);
        }
    // The state is read from shared memory before anyone's next one goes there.
    __syncthreads();
    if (RULE != LINEAR) {
#pragma unroll
      for (int j = 0; j < 4; j++) {
        u32 a[4];
        load_a<64>(a, shared_y, 0, j * 16);
#pragma unroll
        for (int n = 0; n < OWN / 16; n++) {
          u32 b[4];
          load_b_t<K>(b, indirect, own + n * 16, j * 16);
          mma(S[n * 2], a, b[0], b[1]);
          mma(S[n * 2 + 1], a, b[2], b[3]);
        }
        if (RULE == BETA && !BACK && j <= member) {
          u32 x[4];
          load_a<64>(x, tiles + R::P, member * 16, j * 16);
          mma(o[0], x, a[0], a[2]);
          mma(o[1], x, a[1], a[3]);
        }
        if (void *to = BACK ? p.dv : p.written; RULE == BETA && to && j == member)
          stages.store_turned(to, a, mine, chunk * CHUNK + j * 16);
      }
    }
    if (!BACK)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int t = chunk * CHUNK + member * 16 + g + h * 8;
        const long long row = stages.row_base + t * stages.token_stride;
        if (NORM) divide(p, o, amount[0], sums, amounts, chunk, member * 16 + g + h * 8, h);
#pragma unroll
        for (int n = 0; n < 2; n++) {
          const int value = mine + n * 8 + c;
          if (t < p.tokens && v_tile + value < p.values)
            store_two((E *)p.y, row + value, o[n][h * 2], o[n][h * 2 + 1]);
        }
      }
    if (NORM) vector.advance(sums + (BACK ? 0 : 128), d);
  }
  copy_wait<0>();
  if (NORM)
    vector.keep(BACK ? p.n.d_initial_vector : p.n.final_vector, (long long)blockIdx.y * p.keys,
                p.keys);
  float *end = BACK ? p.d_initial : p.final;
  if (end)
#pragma unroll
    for (int n = 0; n < OWN / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int key = own + n * 8 + c + (e & 1), value = v_tile + mine + g + (e >> 1) * 8;
        if (key < p.keys && value < p.values)
          end[state_at + (long long)key * p.values + value] = S[n][e];
      }
}
