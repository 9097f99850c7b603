// What the delta rules' walks by tiles share, forward and back: Hopper, records as `prepare` writes them
// (chunk_common.cuh), bfloat16, keys of up to 64 or 128 channels, values by 64 columns.
//
// Four warps own 64 value columns of a head's state and keep it transposed in registers, [value, key]. There it is the
// first operand of every product that reads it, so it never goes through shared memory: what a chunk adds to it, its
// outputs and its values are transposed likewise, and turned as they are stored. With more than 64 columns a block of
// threads has two such groups, which read the same tiles and fill each other's waits. One warp asks the copy engine
// for the tiles.
#pragma once
#include "chunk_common.cuh"
#include "wgmma.cuh"

/// Boxes of 64 rows: `tiles` of records as they lie, [record, K̃ | W | Q̄ (| B̂), K / 64, 64]; q, k and `rows` (v, or
/// dy in the walk back) of 64 channels of a head.
struct DeltaTileArgs {
  gyre_tensor_map tiles, q, k, rows;
  MixerArgs m;
  float *segment_states;    // [B·H, segments − 1, V / 64, 4096 K / 64] as threads hold them, or null: one segment
  u16 *segment_transitions; // [B·H, segments − 1, K / 64, high and low parts, 64 K] tiles; likewise
  int segments;             // none of them empty
  int segment_chunks;       // of each but the last
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// Where the rows of K̄ and Q̄ come from: inputs, to be multiplied by factors, or the record's own tiles.
enum DeltaSource { RAW, CHANNELS };

/// A ring's barriers: who fills a place, who is done with it.
struct Gates {
  u64 *full, *empty;
  DEV_MEMBER Gates(u64 *&next, int count) : full(next), empty(next + count) { next += 2 * count; }
  DEV_MEMBER void begin(int count, int fills, int uses) const {
    for (int i = 0; i < count; i++) {
      barrier_init(full + i, fills);
      barrier_init(empty + i, uses);
    }
  }
};

/// One thread: a tile of 64 rows of a record, by its place in it.
template <int K>
DEV void load_tile(const DeltaTileArgs &t, unsigned char *to, int tile, int record, u64 *full) {
#pragma unroll
  for (int i = 0; i < K / 64; i++) load_box((u16 *)to + i * PANEL, t.tiles, 0, i, tile * 64, record, full);
}
/// One thread: 64 rows of q or k, all channels.
template <int K>
DEV void load_inputs(const gyre_tensor_map &map, unsigned char *to, int head, int row, int batch, u64 *full) {
#pragma unroll
  for (int i = 0; i < K / 64; i++) load_box((u16 *)to + i * PANEL, map, i * 64, head, row, batch, full);
}

/// Calls `each(n, e, index)` for the elements of a [64 values, K] state, from value `column` on, that a thread holds.
template <int K, class F>
DEV void visit_state(const MixerArgs &p, int column, F each) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, g = lane >> 2, c = (lane & 3) * 2;
#pragma unroll
  for (int n = 0; n < K / 8; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int key = n * 8 + c + (e & 1), value = column + warp * 16 + g + (e >> 1) * 8;
      if (key < p.keys && value < p.values)
        each(n, e, ((long long)blockIdx.y * p.keys + key) * p.values + value);
    }
}

/// A [16 values, K] piece of a state to or from `states` or `state_gradients`: where this lane's part of its first 16
/// keys lies, 32 apart for the next; null past the values.
template <int K>
DEV uint4 *kept_state(void *states, const MixerArgs &p, int column, int chunk) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3;
  const int blocks = (p.values + 15) / 16, block = column / 16 + warp;
  if (!states || block >= blocks) return nullptr;
  return (uint4 *)states + (((long long)blockIdx.y * p.chunks + chunk) * blocks + block) * (K / 16) * 32 + lane;
}

/// Where a thread's part of the state that a segment leaves lies; [K / 8] of them, 128 apart.
template <int K>
DEV float4 *segment_state(const DeltaTileArgs &t, int segment, int block) {
  const int blocks = (t.m.values + 63) / 64;
  return (float4 *)t.segment_states +
         (((long long)blockIdx.y * (t.segments - 1) + segment) * blocks + block) * (K / 8) * 128 + (threadIdx.x & 127);
}
template <int K>
DEV void load_state(float (&S)[K / 8][4], const float4 *from) {
#pragma unroll
  for (int n = 0; n < K / 8; n++) {
    const float4 x = from[n * 128];
    S[n][0] = x.x;
    S[n][1] = x.y;
    S[n][2] = x.z;
    S[n][3] = x.w;
  }
}
template <int K>
DEV void store_state(float4 *to, const float (&S)[K / 8][4]) {
#pragma unroll
  for (int n = 0; n < K / 8; n++) to[n * 128] = {S[n][0], S[n][1], S[n][2], S[n][3]};
}
/// Tiles [64 keys before][K keys after]: high parts, then low parts.
template <int K>
DEV u16 *segment_transition(const DeltaTileArgs &t, int segment, int block) {
  return t.segment_transitions + (((long long)blockIdx.y * (t.segments - 1) + segment) * (K / 64) + block) * 128 * K;
}
/// A block of the identity's rows, to become what a segment does to them.
template <int K>
DEV void begin_transition(float (&S)[K / 8][4], int block) {
  const int lane = threadIdx.x & 31, row = block * 64 + (threadIdx.x >> 5 & 3) * 16 + (lane >> 2);
#pragma unroll
  for (int n = 0; n < K / 8; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) S[n][e] = row + (e >> 1) * 8 == n * 8 + (lane & 3) * 2 + (e & 1) ? 1.0f : 0.0f;
}
template <int K>
DEV void store_transition(u16 *to, const float (&S)[K / 8][4]) {
  const int lane = threadIdx.x & 31, row = (threadIdx.x >> 5 & 3) * 16 + (lane >> 2), c = (lane & 3) * 2;
#pragma unroll
  for (int n = 0; n < K / 8; n++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float x = S[n][h * 2], y = S[n][h * 2 + 1];
      const u32 high = pack2(x, y);
      u32 *place = (u32 *)(to + n / 8 * PANEL + at<64>(row + h * 8, n % 8 * 8 + c));
      place[0] = high;
      place[K * 32] = pack2(x - low_of(high), y - high_of(high));
    }
}
/// A state that enters a transition, as an operand in two parts.
template <int K>
DEV void split_state(u32 (&high)[K / 16][4], u32 (&low)[K / 16][4], const float (&S)[K / 8][4]) {
#pragma unroll
  for (int i = 0; i < K / 16; i++) {
    as_a(high[i], S[i * 2], S[i * 2 + 1]);
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const float *x = S[i * 2 + (e >> 1)] + (e & 1) * 2;
      low[i][e] = pack2(x[0] - low_of(high[i][e]), x[1] - high_of(high[i][e]));
    }
  }
}

template <int N>
DEV void decay_state(float (&S)[N][4], const float *d) {
  const int c = (threadIdx.x & 3) * 2;
#pragma unroll
  for (int n = 0; n < N; n++) {
    const two f = *(const two *)(d + n * 8 + c);
    S[n][0] *= f.x;
    S[n][1] *= f.y;
    S[n][2] *= f.x;
    S[n][3] *= f.y;
  }
}

/// What a thread holds of [64 values, 64 tokens]: as the first operand of four products 16 tokens deep.
typedef u32 Turned[4][4];

DEV void as_turned(Turned &r, const float (&x)[8][4]) {
#pragma unroll
  for (int j = 0; j < 4; j++) as_a(r[j], x[j * 2], x[j * 2 + 1]);
}
/// From a panel [64 tokens][64 values].
DEV void load_turned(Turned &r, const u16 *panel) {
  const int warp = threadIdx.x >> 5 & 3;
#pragma unroll
  for (int j = 0; j < 4; j++) load_a_t<64>(r[j], panel, warp * 16, j * 16);
}
DEV void add_turned(float (&x)[8][4], const Turned &r) {
#pragma unroll
  for (int n = 0; n < 8; n++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const u32 pair = r[n / 2][n % 2 * 2 + h];
      x[n][h * 2] += low_of(pair);
      x[n][h * 2 + 1] += high_of(pair);
    }
}
/// To the same place of a panel: a warp writes the 16 columns that it reads.
DEV void store_turned(u16 *panel, const Turned &r) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3;
#pragma unroll
  for (int j = 0; j < 4; j++)
    stsm4t(panel + at<64>(j * 16 + (lane & 7) + (lane >> 4) * 8, warp * 16 + (lane >> 3 & 1) * 8), r[j]);
}
/// Four warps, when all have stored their columns: a panel to rows of a tensor [B, T, H, V], whole rows by each warp.
/// `to` is the chunk's first row from the panel's first column on, `rows` and `columns` what there is of it. `taken()`
/// comes when the panel has been read, before any row is written: a fence afterwards would wait for those writes.
template <class F>
DEV void write_rows(bf16 *to, long long stride, int rows, int columns, const u16 *panel, F taken) {
  const int lane = threadIdx.x & 31, first = (threadIdx.x >> 5 & 3) * 16 + (lane >> 3), column = (lane & 7) * 8;
  group_wait(threadIdx.x >> 7);
  uint4 x[4];
#pragma unroll
  for (int m = 0; m < 4; m++) x[m] = *(const uint4 *)(panel + at<64>(first + m * 4, column));
  asm volatile("" ::: "memory");  // all are asked for before the first is waited for
  taken();
#pragma unroll
  for (int m = 0; m < 4; m++)
    if (first + m * 4 < rows && column < columns)
      ((uint4 *)to)[(first + m * 4) * ((int)stride / 8) + column / 8] = x[m];
}
/// The factors of the tokens that a thread holds, one for each of a row of accumulators.
DEV void load_factors(two (&f)[8], const float *of_tokens) {
  const int c = (threadIdx.x & 3) * 2;
#pragma unroll
  for (int n = 0; n < 8; n++) f[n] = *(const two *)(of_tokens + n * 8 + c);
}
DEV void times_factors(float (&x)[8][4], const two (&f)[8]) {
#pragma unroll
  for (int n = 0; n < 8; n++) {
    x[n][0] *= f[n].x;
    x[n][1] *= f[n].y;
    x[n][2] *= f[n].x;
    x[n][3] *= f[n].y;
  }
}

#endif
