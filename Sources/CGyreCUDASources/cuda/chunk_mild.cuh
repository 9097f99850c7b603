// What prepare and gradient share for mild chunks: no reset, and no channel that decays by more
// than 2^−MILD_RANGE in either half of the chunk.
//
// With c the running sum of the log decays, e^{c_i − c_j} of any pair is a row's e^{c} times a
// column's e^{−c}, both well inside the range of bf16 and each rounded once, so the hierarchy of
// halves is one product. What pairs above the diagonal give stays finite and is masked.
#pragma once
#include "chunk_common.cuh"

/// Masked pairs reach 2^(2·MILD_RANGE); sums over 64 such channels stay below 2^127.
#define MILD_RANGE 40.0f

/// The log2 decays of a warp's 16 rows and 8 N columns where its accumulators lie.
template <int N>
struct MildDecays {
  float c[N][4];  // through a token

  /// The rows' own log2 decays for columns 8 n + … of the warp's: 0 past the end.
  DEV_MEMBER static void own(float (&g)[4], const MixerArgs &p, int batch, int head, int first,
                             int column) {
    const int lane = threadIdx.x & 31, channel = column + (lane & 3) * 2;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int t = first + (lane >> 2) + h * 8;
      two x = {0.0f, 0.0f};
      if (t < p.tokens && channel < p.keys) {
        const long long row = ((long long)batch * p.tokens + t) * p.heads + head;
        x = load_two_any(p.gate, p.gate_is_float, row * p.keys + channel);
      }
      g[h * 2] = x.x * 1.4426950408889634f;
      g[h * 2 + 1] = x.y * 1.4426950408889634f;
    }
  }
  /// Running sums over the warp's rows from token `first`; their ends to the warp's `totals`.
  DEV_MEMBER void load(const MixerArgs &p, int batch, int head, int first, int column,
                       float *totals) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int n = 0; n < N; n++) own(c[n], p, batch, head, first, column + n * 8);
#pragma unroll
    for (int n = 0; n < N; n++) {
#pragma unroll
      for (int s = 4; s < 32; s *= 2)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const float before = __shfl_up_sync(0xffffffffu, c[n][e], s);
          if (lane >= s) c[n][e] += before;
        }
#pragma unroll
      for (int e = 0; e < 2; e++)
        c[n][e + 2] += __shfl_sync(0xffffffffu, c[n][e], 28 + (lane & 3));
      if (lane >= 28) *(two *)(totals + column + n * 8 + (lane & 3) * 2) = {c[n][2], c[n][3]};
    }
  }
  /// Once all totals [4][64] are there: sums from the chunk's middle, or from its start.
  DEV_MEMBER void place(const float *totals, int w, int column, bool from_middle) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int n = 0; n < N; n++) {
      const float *at = totals + column + n * 8 + (lane & 3) * 2;
      two from = {0.0f, 0.0f};
#pragma unroll
      for (int i = 0; i < 3; i++) {
        const two t = *(const two *)(at + i * 64);
        const float sign = (i < w ? 1.0f : 0.0f) - (from_middle && i < 2 ? 1.0f : 0.0f);
        from.x += sign * t.x;
        from.y += sign * t.y;
      }
#pragma unroll
      for (int e = 0; e < 4; e++) c[n][e] += e & 1 ? from.y : from.x;
    }
  }
};

/// Whether a chunk is mild, the same for every warp; totals [4][64] of the part's channels.
DEV bool is_mild(const MixerArgs &p, const float *totals, int batch, int start) {
  const int lane = threadIdx.x & 31;
  bool is_steep = false;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int t = start + lane * 2 + i;
    if (p.reset && t < p.tokens && p.reset[(long long)batch * p.tokens + t]) is_steep = true;
    const float *x = totals + lane * 2 + i;
    // NaN is not mild.
    if (!(x[0] + x[64] > -MILD_RANGE && x[128] + x[192] > -MILD_RANGE)) is_steep = true;
    if (!(x[0] + x[64] < 1.0f && x[128] + x[192] < 1.0f)) is_steep = true;
  }
  return !__any_sync(0xffffffffu, is_steep);
}

/// Sums over the rows of a warp's accumulators from each row to the last, in place, and over all 16
/// rows to `totals`.
template <int N>
DEV void sum_to_end(float (&x)[N][4], float *totals, int column) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int n = 0; n < N; n++) {
#pragma unroll
    for (int s = 4; s < 32; s *= 2)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const float after = __shfl_down_sync(0xffffffffu, x[n][e], s);
        if (lane + s < 32) x[n][e] += after;
      }
#pragma unroll
    for (int e = 0; e < 2; e++) x[n][e] += __shfl_sync(0xffffffffu, x[n][e + 2], lane & 3);
    if (lane < 4) *(two *)(totals + column + n * 8 + lane * 2) = {x[n][0], x[n][1]};
  }
}

/// Calls `body(chunk, row)` for the places [B·H, N] that are this block's and that the mild kernel
/// has left; for all of them where there is none.
template <typename Body>
DEV void each_steep(const MixerArgs &p, const Body &body) {
  const long long count = (long long)p.chunks * p.batch * p.heads;
  const long long step = (long long)gridDim.x * 32;
  for (long long base = blockIdx.x; base < count; base += step) {
    const long long mine = base + (long long)(threadIdx.x & 31) * gridDim.x;
    u32 left = __ballot_sync(0xffffffffu, mine < count && !(p.mild && p.mild[mine]));
    while (left) {
      const long long place = base + (long long)(__ffs(left) - 1) * gridDim.x;
      left &= left - 1;
      body((int)(place % p.chunks), (int)(place / p.chunks));
      __syncthreads();
    }
  }
}

/// What the gradient calls: sizes without a mild gradient have a grid of all places, and no loop, whose
/// registers they could not spare.
template <bool HAS_MILD, typename Body>
DEV void each_gradient(const MixerArgs &p, const Body &body) {
  if (HAS_MILD)
    each_steep(p, body);
  else
    body((int)(blockIdx.x % p.chunks), (int)(blockIdx.x / p.chunks));
}
