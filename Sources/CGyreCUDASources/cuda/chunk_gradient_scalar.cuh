// The gradient's last stages where one decay serves all channels: what linear attention and the delta
// rule share, and the delta rule's own.
#pragma once
#include "chunk_gradient_layout.cuh"

/// The gradients of the chunk's log decays from what each thread of 256 has summed: rows minus columns
/// and what lies after, for its two rows, and its share of ⟨S, dS⟩. `shares`: float [3][2][64].
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

/// The delta rule's last stage where one decay serves all channels: decayed products act on the raw rows, and
/// with r_i, l_j the shares of row i and column j in the pairs inside the chunk, a token's log
/// decay gets Σ_{i ≥ t} (r_i − l_i); pairs on one side of t cancel, as both shares sum the same
/// rounded products.
template <int K, int V, typename E>
DEV void scalar_gradients(const MixerArgs &p, u16 *m, const ScalarDecays &decays, long long key_row,
                          long long key_stride, long long head_row, long long head_stride, int rows,
                          long long token, int head) {
  typedef GradientLayout<BETA, K, V> L;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = (lane & 3) * 2;
  const int w = warp & 3, half = warp >> 2;
  float *shares = (float *)(m + L::cross);  // [3][2][64]: rows minus columns, after, carry
  float row_share[2] = {0.0f, 0.0f}, after[2] = {0.0f, 0.0f}, carried = 0.0f;
  float lead[2], tail[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    lead[h] = decays.lead[w * 16 + g + h * 8];
    tail[h] = decays.tail[w * 16 + g + h * 8];
  }
#pragma unroll 1
  for (int part = 0; part < K / 64; part++) {
    if (part) {
      __syncthreads();
      load_rows<64>(m + L::raw_q, (const E *)p.q, key_row + part * 64, key_stride, rows,
                    p.keys - part * 64, 256);
      load_rows<64>(m + L::raw_k, (const E *)p.k, key_row + part * 64, key_stride, rows,
                    p.keys - part * 64, 256);
      copy_commit();
      copy_wait<0>();
      __syncthreads();
      if (p.normalize) {
        scale_raw(p, m + L::raw_q, m + L::raw_k, (long long)blockIdx.y * p.chunks + blockIdx.x);
        __syncthreads();
      }
    }
    float dq[4][4], dk_row[4][4], dk[4][4], r[4][4];
    clear(dq);
    clear(dk_row);
    clear(dk);
    const u16 *q = m + L::raw_q, *k = m + L::raw_k;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      u32 f[4];
      if (j <= w) {
        load_a<64>(f, m + L::qk, w * 16, j * 16);
        add_product<64>(dq, f, k, j * 16, half * 32);
        load_a<64>(f, m + L::ak, w * 16, j * 16);
        add_product<64>(dk_row, f, k, j * 16, half * 32);
      }
      if (j >= w) {
        load_a_t<64>(f, m + L::qk, w * 16, j * 16);
        add_product<64>(dk, f, q, j * 16, half * 32);
        load_a_t<64>(f, m + L::ak, w * 16, j * 16);
        add_product<64>(dk, f, k, j * 16, half * 32);
      }
    }
    const auto row_of = [&](int h) { return w * 16 + g + h * 8; };
    const auto pair_of = [&](const u16 *tile, int n, int h) {
      const u32 x = *(const u32 *)(tile + at<64>(row_of(h), half * 32 + n * 8 + c));
      return two{low_of(x), high_of(x)};
    };
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const two key = pair_of(k, n, h);
        row_share[h] -= key.x * dk[n][h * 2] + key.y * dk[n][h * 2 + 1];
      }
    const auto state_product = [&](const u16 *left, const u16 *state) {
      clear(r);
#pragma unroll
      for (int s = 0; s < V / 16; s++) {
        u32 a[4];
        load_a<V>(a, left, w * 16, s * 16);
#pragma unroll
        for (int n = 0; n < 2; n++) {
          u32 b[4];
          load_b_t<K>(b, state, part * 64 + half * 32 + n * 16, s * 16);
          mma(r[n * 2], a, b[0], b[1]);
          mma(r[n * 2 + 1], a, b[2], b[3]);
        }
      }
    };
    const auto add_scaled = [&](float (&to)[4][4], const float (&f)[2], float sign) {
#pragma unroll
      for (int n = 0; n < 4; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) to[n][e] += r[n][e] * f[e >> 1] * sign;
    };
    state_product(m + L::dy, m + L::s);
    add_scaled(dq, lead, p.scale);
    state_product(m + L::r, m + L::s);
    add_scaled(dk_row, lead, -1.0f);
    state_product(m + L::n, m + L::ds);
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const two query = pair_of(q, n, h), key = pair_of(k, n, h);
        row_share[h] += query.x * dq[n][h * 2] + query.y * dq[n][h * 2 + 1];
        row_share[h] += key.x * dk_row[n][h * 2] + key.y * dk_row[n][h * 2 + 1];
        after[h] += tail[h] * (key.x * r[n][h * 2] + key.y * r[n][h * 2 + 1]);
      }
    add_scaled(dk, tail, 1.0f);
#pragma unroll
    for (int h = 0; h < 2; h++)
      if (row_of(h) < rows)
#pragma unroll
        for (int n = 0; n < 4; n++) {
          const int channel = part * 64 + half * 32 + n * 8 + c;
          if (channel >= p.keys) continue;
          const long long to = head_row + row_of(h) * head_stride + channel;
          store_two((E *)p.dq, to, dq[n][h * 2], dq[n][h * 2 + 1]);
          store_two((E *)p.dk, to, dk[n][h * 2] + dk_row[n][h * 2],
                    dk[n][h * 2 + 1] + dk_row[n][h * 2 + 1]);
        }
    if (p.d_gate) {
      const int pair = threadIdx.x & 31;
#pragma unroll 4
      for (int v = warp; v < V; v += 8) {
        const u32 x = *(const u32 *)(m + L::s + at<K>(v, part * 64 + pair * 2));
        const u32 y = *(const u32 *)(m + L::ds + at<K>(v, part * 64 + pair * 2));
        carried += low_of(x) * low_of(y) + high_of(x) * high_of(y);
      }
    }
  }
  scalar_gate_gradients(p, shares, decays, row_share, after, carried, rows, token, head);
}
