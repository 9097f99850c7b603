// The gradient's last stages where one decay serves all channels: what linear attention and the delta
// rule share, and the delta rule's own.
#pragma once
#include "chunk_gradient_layout.cuh"

/// One warp: the gradients of the chunk's log decays from two shares a token of rows minus columns and of
/// what lies after, and eight of ⟨S, dS⟩. `shares`: float [3][2][64].
DEV void finish_gate_gradients(const MixerArgs &p, float *shares, const ScalarDecays &decays,
                               int rows, long long token, int head) {
  const int lane = threadIdx.x & 31;
  // Two tokens a lane: sums from the chunk's end, and of what lies before.
  float through = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; i++) through += shares[256 + i];
  through *= decays.lead[63];
  const int t0 = 62 - lane * 2;  // reversed, so that the scan runs from the end
  const float x1 = shares[t0 + 1] + shares[64 + t0 + 1], x0 = shares[t0] + shares[64 + t0];
  float back = x0 + x1;
  const float y0 = shares[128 + lane * 2] + shares[192 + lane * 2];
  const float y1 = shares[128 + lane * 2 + 1] + shares[192 + lane * 2 + 1];
  float ahead = y0 + y1;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const float b = __shfl_up_sync(0xffffffffu, back, d), a = __shfl_up_sync(0xffffffffu, ahead, d);
    if (lane >= d) {
      back += b;
      ahead += a;
    }
  }
  __syncwarp();
  shares[t0] = back;           // Σ from t0 on
  shares[t0 + 1] = back - x0;  // Σ from t0 + 1 on
  shares[128 + lane * 2] = ahead - y1 - y0;
  shares[128 + lane * 2 + 1] = ahead - y1;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int t = lane + i * 32;
    if (t < rows) {
      const bool is_closed = decays.closed[t] != (t ? decays.closed[t - 1] : 0.0f);
      ((float *)p.d_gate)[(token + t) * p.heads + head] =
          is_closed ? 0.0f : shares[t] + shares[128 + t] + through;
    }
  }
}

/// The same from what each thread of 256 has summed, for its two rows, and its share of ⟨S, dS⟩.
DEV void scalar_gate_gradients(const MixerArgs &p, float *shares, const ScalarDecays &decays,
                               float (&row_share)[2], float (&after)[2], float carried, int rows,
                               long long token, int head) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2;
  const int w = warp & 3, half = warp >> 2;
  if (!p.d_gate) return;
#pragma unroll
  for (int h = 0; h < 2; h++) {
#pragma unroll
    for (int s = 1; s < 4; s *= 2) {
      row_share[h] += __shfl_xor_sync(0xffffffffu, row_share[h], s);
      after[h] += __shfl_xor_sync(0xffffffffu, after[h], s);
    }
    if ((lane & 3) == 0) {
      shares[half * 64 + w * 16 + g + h * 8] = row_share[h];
      shares[128 + half * 64 + w * 16 + g + h * 8] = after[h];
    }
  }
#pragma unroll
  for (int s = 1; s < 32; s *= 2) carried += __shfl_xor_sync(0xffffffffu, carried, s);
  if (lane == 0) shares[256 + warp] = carried;
  __syncthreads();
  if (warp) return;
  finish_gate_gradients(p, shares, decays, rows, token, head);
}

/// The delta rule's last stage where one decay serves all channels: decayed products act on the raw rows, and
/// with r_i, l_j the shares of row i and column j in the pairs inside the chunk, a token's log
/// decay gets Σ_{i ≥ t} (r_i − l_i); pairs on one side of t cancel, as both shares sum the same
/// rounded products. A warp has 16 channels of all rows, or of K 64 of half of them: the first and
/// last 16 or those between. So a state's operands are one warp's, and come straight from memory.
template <int K, int V>
struct ScalarGradients {
  typedef GradientLayout<BETA, K, V, true> L;
  enum { BLOCKS = K / 32, GROUPS = K / 16 };
  KeptColumns<K, V> state;

  DEV_MEMBER static int group() { return (threadIdx.x >> 5) % GROUPS; }
  DEV_MEMBER static int block(int i) {
    const int inner = (threadIdx.x >> 5) / GROUPS;
    return K == 128 ? i : i ? 3 - inner : inner;
  }
  /// Calls `body(i, h, row)` for a lane's rows.
  template <typename Body>
  DEV_MEMBER static void each(const Body &body) {
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) body(i, h, block(i) * 16 + ((int)threadIdx.x >> 2 & 7) + h * 8);
  }
  /// First of all: both states on their way to the chip.
  DEV_MEMBER static void announce(const MixerArgs &p, long long place) {
    const long long bytes = (p.values + 15) / 16 * K * 32;
    for (long long i = threadIdx.x * 128; i < bytes; i += 256 * 128) {
      prefetch((const unsigned char *)p.states + place * bytes + i);
      prefetch((const unsigned char *)p.state_gradients + place * bytes + i);
    }
  }
  /// Early: what is on its way while the products of pairs are made.
  DEV_MEMBER void fetch(const MixerArgs &p, long long place) {
    state.begin(p.states, place, p.values, group() * 16);
  }
  /// d += rows of `left` times the state.
  DEV_MEMBER void add_state(float (&d)[BLOCKS][2][4], const u16 *left, const u32 (&b)[4], int i) const {
#pragma unroll
    for (int k = 0; k < BLOCKS; k++) {
      u32 a[4];
      load_a<V>(a, left, block(k) * 16, i * 16);
      mma(d[k][0], a, b[0], b[1]);
      mma(d[k][1], a, b[2], b[3]);
    }
  }

  template <typename E>
  DEV_MEMBER void run(const MixerArgs &p, u16 *m, const ScalarDecays &decays, long long place,
                      long long head_row, long long head_stride, int rows, long long token, int head) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, c = (lane & 3) * 2;
    const int column = group() * 16;
    const u16 *q = m + L::raw_q, *k = m + L::raw_k;
    float *parts = (float *)(m + L::cross), *shares = (float *)(m + L::carry);  // [GROUPS][2][64]; [3][2][64]
    float dq[BLOCKS][2][4], dk[BLOCKS][2][4];
    // A row's accumulators times its `tile`, over the warp's columns.
    const auto dot = [&](const u16 *tile, const float (&d)[2][4], int row, int h) {
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < 2; n++) {
        const u32 x = *(const u32 *)(tile + at<K>(row, column + n * 8 + c));
        sum += low_of(x) * d[n][h * 2] + high_of(x) * d[n][h * 2 + 1];
      }
      return sum;
    };
    // What a row has of that goes to the warp's part.
    const auto share = [&](int to, float x, bool adds) {
      x += __shfl_xor_sync(0xffffffffu, x, 1);
      x += __shfl_xor_sync(0xffffffffu, x, 2);
      if ((lane & 3) == 0) parts[group() * 128 + to] = adds ? parts[group() * 128 + to] + x : x;
    };
    const int stride = (int)head_stride;
    const auto store = [&](E *to, const float (&d)[2][4], int row, int h) {
#pragma unroll
      for (int n = 0; n < 2; n++) {
        const int channel = column + n * 8 + c;
        if (row < rows && channel < p.keys)
          store_two(to, row * stride + channel, d[n][h * 2], d[n][h * 2 + 1]);
      }
    };

    // Rows: pairs with the state before the chunk, then with earlier tokens.
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) {
      clear(dq[i]);
      clear(dk[i]);
    }
#pragma unroll
    for (int i = 0; i < V / 16; i++) {
      u32 b[4];
      state.next(b, i);
      add_state(dq, m + L::dy, b, i);
      add_state(dk, m + L::r, b, i);
    }
    each([&](int i, int h, int row) {
      const float lead = decays.lead[row];
#pragma unroll
      for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          dq[i][n][h * 2 + e] *= lead * p.scale;
          dk[i][n][h * 2 + e] *= -lead;
        }
    });
#pragma unroll
    for (int j = 0; j < 4; j++) {
      u32 a[4], b[4];
      load_b_t<K>(b, k, column, j * 16);
#pragma unroll
      for (int i = 0; i < BLOCKS; i++)
        if (j <= block(i)) {
          load_a<64>(a, m + L::qk, block(i) * 16, j * 16);
          mma(dq[i][0], a, b[0], b[1]);
          mma(dq[i][1], a, b[2], b[3]);
          load_a<64>(a, m + L::ak, block(i) * 16, j * 16);
          mma(dk[i][0], a, b[0], b[1]);
          mma(dk[i][1], a, b[2], b[3]);
        }
    }
    if (p.d_gate)
      each([&](int i, int h, int row) {
        share(row, dot(q, dq[i], row, h) + dot(k, dk[i], row, h), false);
      });
    E *to = (E *)p.dq + head_row;
    each([&](int i, int h, int row) { store(to, dq[i], row, h); });

    // Columns: pairs with later tokens, then with the state after the chunk.
    KeptColumns<K, V> later;
    later.begin(p.state_gradients, place, p.values, column);
    float (&d)[BLOCKS][2][4] = dq;
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) clear(d[i]);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      u32 a[4], b[4], b2[4];
      load_b_t<K>(b, q, column, j * 16);
      load_b_t<K>(b2, k, column, j * 16);
#pragma unroll
      for (int i = 0; i < BLOCKS; i++)
        if (j >= block(i)) {
          load_a_t<64>(a, m + L::qk, block(i) * 16, j * 16);
          mma(d[i][0], a, b[0], b[1]);
          mma(d[i][1], a, b[2], b[3]);
          load_a_t<64>(a, m + L::ak, block(i) * 16, j * 16);
          mma(d[i][0], a, b2[0], b2[1]);
          mma(d[i][1], a, b2[2], b2[3]);
        }
    }
    if (p.d_gate)
      each([&](int i, int h, int row) { share(row, -dot(k, d[i], row, h), true); });
#pragma unroll
    for (int i = 0; i < BLOCKS; i++) {
#pragma unroll
      for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) dk[i][n][e] += d[i][n][e];
      clear(d[i]);
    }
#pragma unroll
    for (int i = 0; i < V / 16; i++) {
      u32 b[4];
      later.next(b, i);
      add_state(d, m + L::n, b, i);
    }
    to = (E *)p.dk + head_row;
    each([&](int i, int h, int row) {
      const float tail = decays.tail[row];
      if (p.d_gate) share(64 + row, tail * dot(k, d[i], row, h), false);
#pragma unroll
      for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) dk[i][n][h * 2 + e] += tail * d[i][n][h * 2 + e];
      store(to, dk[i], row, h);
    });
    if (!p.d_gate) return;

    float carried = block(0) == 0 ? state.times(later) : 0.0f;
#pragma unroll
    for (int s = 1; s < 32; s *= 2) carried += __shfl_xor_sync(0xffffffffu, carried, s);
    if (lane == 0) shares[256 + warp] = carried;
    __syncthreads();
    if (threadIdx.x < 128) {
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < GROUPS; i++) sum += parts[i * 128 + threadIdx.x];
      const int to = threadIdx.x + (threadIdx.x & 64);
      shares[to] = sum;
      shares[to + 64] = 0.0f;
    }
    __syncthreads();
    if (warp == 0) finish_gate_gradients(p, shares, decays, rows, token, head);
  }
};
