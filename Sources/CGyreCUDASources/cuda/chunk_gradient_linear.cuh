// gradient of linear attention where one decay serves all channels, with or without a normaliser:
//
//     dV = P̃ᵀ dO + K̃ dS,  dP = s tril(dO Vᵀ + da) ∘ decays
//     dQ = dP K + s lead (dO Sᵀ + da zᵀ),  dK = dPᵀ Q + tail (V dSᵀ + dzᵀ)
//
// Keys and values of any size pass through tiles of 64 × 64, so shared memory does not depend on them.
#pragma once
#include "chunk_gradient_scalar.cuh"

struct LinearGradientLayout {
  static constexpr int v = 0, dy = 4096, s = 2 * 4096, ds = 3 * 4096, kt = 4 * 4096, q = 5 * 4096,
                       k = 6 * 4096, products = 7 * 4096;  // P̃, then dP
  static constexpr int decays = 8 * 4096;                  // ScalarDecays
  static constexpr int shares = decays + 640;              // float [5][2][64]
  static constexpr int da = shares + 1280;                 // float [64]
  static constexpr int vector = da + 128;                  // float [2][64]: z and dz of a part
  static constexpr int bytes = (vector + 256) * 2;
};

/// Grid (N, B·H), 256 threads, LinearGradientLayout::bytes of shared memory; K: the kernels' size.
/// Reads q, k, v, gate, input gate, reset, records, states, state_gradients, dy and the normaliser's
/// d_amounts, vectors, vector_gradients; writes dq, dk, dv, d_gate, d_input.
template <int K, typename E>
DEV void linear_gradient(const MixerArgs &p) {
  typedef LinearGradientLayout L;
  typedef Record<LINEAR, K> R;
  constexpr int PARTS = K / 64;
  SHARED(memory);
  u16 *m = (u16 *)memory;
  float *shares = (float *)(m + L::shares), *da = (float *)(m + L::da);
  float *vector = (float *)(m + L::vector);
  ScalarDecays &decays = *(ScalarDecays *)(m + L::decays);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = (lane & 3) * 2;
  const int w = warp & 3, half = warp >> 2, h0 = half * 32;
  const int batch = blockIdx.y / p.heads, head = blockIdx.y % p.heads, start = blockIdx.x * CHUNK;
  const int key_head = head / (p.heads / p.key_heads);
  const long long place = (long long)blockIdx.y * p.chunks + blockIdx.x;
  const u16 *record = (const u16 *)(p.records + place * R::bytes);
  const int rows = p.tokens - start < CHUNK ? p.tokens - start : CHUNK;
  const long long token = (long long)batch * p.tokens + start;
  const long long value_row = (token * p.heads + head) * p.values;
  const long long value_stride = (long long)p.heads * p.values;
  const long long key_row = (token * p.key_heads + key_head) * p.keys;
  const long long key_stride = (long long)p.key_heads * p.keys;
  const long long head_row = (token * p.heads + head) * p.keys;
  const long long head_stride = (long long)p.heads * p.keys;
  const int pieces = (p.values + 63) / 64, blocks = (p.values + 15) / 16;
  const bool is_single = PARTS == 1 && pieces == 1, has_norm = p.n.d_amounts;

  const auto load_values = [&](int piece) {
    const int width = p.values - piece * 64;
    load_rows<64>(m + L::v, (const E *)p.v, value_row + piece * 64, value_stride, rows, width, 256);
    load_rows<64>(m + L::dy, (const E *)p.dy, value_row + piece * 64, value_stride, rows, width,
                  256);
  };
  const auto load_keys = [&](int part) {
    const int width = p.keys - part * 64;
    load_rows<64>(m + L::q, (const E *)p.q, key_row + part * 64, key_stride, rows, width, 256);
    load_rows<64>(m + L::k, (const E *)p.k, key_row + part * 64, key_stride, rows, width, 256);
    if (has_norm && threadIdx.x < 32) {
      const float *from = threadIdx.x < 16 ? p.n.vectors : p.n.vector_gradients;
      copy16(vector + threadIdx.x * 4, from + place * K + part * 64 + (threadIdx.x & 15) * 4, true);
    }
  };
  // A kept state's tile, from the walk's order.
  struct Kept {
    uint4 piece[2];
  };
  const auto fetch = [&](Kept &to, const void *kept, int piece, int part) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const int i = threadIdx.x + n * 256, block = piece * 4 + (i >> 7), step = i >> 5 & 3;
      to.piece[n] = {0, 0, 0, 0};
      if (block < blocks)
        to.piece[n] = ((const uint4 *)kept)[((place * blocks + block) * (K / 16) + part * 4 + step) *
                                                32 +
                                            lane];
    }
  };
  const auto put = [&](u16 *tile, const Kept &from) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const int i = threadIdx.x + n * 256, row = (i >> 7) * 16 + g, column = (i >> 5 & 3) * 16 + c;
      *(u32 *)(tile + at<64>(row, column)) = from.piece[n].x;
      *(u32 *)(tile + at<64>(row + 8, column)) = from.piece[n].y;
      *(u32 *)(tile + at<64>(row, column + 8)) = from.piece[n].z;
      *(u32 *)(tile + at<64>(row + 8, column + 8)) = from.piece[n].w;
    }
  };
  const auto arrive = [&] {
    copy_commit();
    copy_wait<0>();
    __syncthreads();
  };

  // Asked for before all else, needed when the tiles are there.
  GatePair gates;
  if (warp == 0) gates.fetch(p, batch, head, start);
  float amount = 0.0f;
  if (has_norm && warp >= 6 && (int)threadIdx.x < 192 + rows)
    amount = p.n.d_amounts[(token + threadIdx.x - 192) * p.heads + head];

  // The gradients of values and of the masked products.
  float dp[4][4], dv[4][4];
  clear(dp);
#pragma unroll 1
  for (int piece = 0; piece < pieces; piece++) {
    clear(dv);
#pragma unroll 1
    for (int part = 0; part < PARTS; part++) {
      Kept state_gradient, state;
      fetch(state_gradient, p.state_gradients, piece, part);
      if (is_single) fetch(state, p.states, 0, 0);
      if (!part) load_values(piece);
      if (is_single) load_keys(0);
      for (int i = threadIdx.x; i < 512; i += 256)
        copy16(m + L::kt + i * 8, record + R::KT + (i >> 3) * K + part * 64 + (i & 7) * 8, true);
      if (!piece && !part) {  // once, while the tiles are on their way
        for (int i = threadIdx.x; i < 512; i += 256)
          copy16(m + L::products + i * 8, record + R::P + i * 8, true);
        if (warp == 0) decays.fill(p, gates, batch, head, start);
        if (warp >= 6) da[threadIdx.x - 192] = amount;
      }
      put(m + L::ds, state_gradient);
      if (is_single) put(m + L::s, state);
      arrive();
      if (!part) {
#pragma unroll
        for (int j = 0; j < 4; j++)
          if (j >= w) {
            u32 a[4];
            load_a_t<64>(a, m + L::products, w * 16, j * 16);
            add_product<64>(dv, a, m + L::dy, j * 16, h0);
          }
#pragma unroll
        for (int s = 0; s < 4; s++) {
          u32 a[4], b[4];
          load_a<64>(a, m + L::dy, w * 16, s * 16);
#pragma unroll
          for (int j = 0; j < 2; j++)
            if (half * 2 + j <= w) {
              load_b<64>(b, m + L::v, h0 + j * 16, s * 16);
              mma(dp[j * 2], a, b[0], b[1]);
              mma(dp[j * 2 + 1], a, b[2], b[3]);
            }
        }
      }
#pragma unroll
      for (int s = 0; s < 4; s++) {
        u32 a[4], b[4];
        load_a<64>(a, m + L::kt, w * 16, s * 16);
#pragma unroll
        for (int n = 0; n < 2; n++) {
          load_b<64>(b, m + L::ds, h0 + n * 16, s * 16);
          mma(dv[n * 2], a, b[0], b[1]);
          mma(dv[n * 2 + 1], a, b[2], b[3]);
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = w * 16 + g + h * 8;
      if (row < rows)
#pragma unroll
        for (int n = 0; n < 4; n++) {
          const int column = piece * 64 + h0 + n * 8 + c;
          if (column < p.values)
            store_two((E *)p.dv, value_row + row * value_stride + column, dv[n][h * 2],
                      dv[n][h * 2 + 1]);
        }
    }
  }
#pragma unroll
  for (int n = 0; n < 4; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int i = w * 16 + g + (e >> 1) * 8, j = h0 + n * 8 + c + (e & 1);
      dp[n][e] = j <= i ? (dp[n][e] + da[i]) * p.scale * decays.between(i, j) : 0.0f;
    }
  store_tile<64>(m + L::products, w * 16, h0, dp);

  // The gradients of queries and keys; rows minus columns, what lies after, ⟨k, dk⟩, ⟨S, dS⟩.
  float row_share[2] = {0.0f, 0.0f}, after[2] = {0.0f, 0.0f}, key_share[2] = {0.0f, 0.0f};
  float carried = 0.0f, lead[2], tail[2];
  const auto row_of = [&](int h) { return w * 16 + g + h * 8; };
#pragma unroll
  for (int h = 0; h < 2; h++) {
    lead[h] = decays.lead[row_of(h)];
    tail[h] = decays.tail[row_of(h)];
  }
#pragma unroll 1
  for (int part = 0; part < PARTS; part++) {
    float dq[4][4], dk[4][4], before[4][4], behind[4][4];
    clear(dq);
    clear(dk);
    clear(before);
    clear(behind);
    if (!is_single) load_keys(part);
#pragma unroll 1
    for (int piece = 0; piece < pieces; piece++) {
      if (!is_single) {
        Kept state, state_gradient;
        fetch(state, p.states, piece, part);
        fetch(state_gradient, p.state_gradients, piece, part);
        load_values(piece);
        put(m + L::s, state);
        put(m + L::ds, state_gradient);
      }
      arrive();
      if (!piece && p.normalize) {
        scale_raw<64>(p, m + L::q, m + L::k, place);
        __syncthreads();
      }
      if (!piece) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
          u32 f[4];
          if (j <= w) {
            load_a<64>(f, m + L::products, w * 16, j * 16);
            add_product<64>(dq, f, m + L::k, j * 16, h0);
          }
          if (j >= w) {
            load_a_t<64>(f, m + L::products, w * 16, j * 16);
            add_product<64>(dk, f, m + L::q, j * 16, h0);
          }
        }
      }
#pragma unroll
      for (int s = 0; s < 4; s++) {
        u32 f[4];
        load_a<64>(f, m + L::dy, w * 16, s * 16);
        add_product<64>(before, f, m + L::s, s * 16, h0);
        load_a<64>(f, m + L::v, w * 16, s * 16);
        add_product<64>(behind, f, m + L::ds, s * 16, h0);
      }
      if (p.d_gate)
#pragma unroll 4
        for (int v = warp; v < 64; v += 8) {
          const u32 x = *(const u32 *)(m + L::s + at<64>(v, lane * 2));
          const u32 y = *(const u32 *)(m + L::ds + at<64>(v, lane * 2));
          carried += low_of(x) * low_of(y) + high_of(x) * high_of(y);
        }
      if (piece + 1 < pieces) __syncthreads();
    }
    if (has_norm && warp == 0)
      carried += vector[lane] * vector[64 + lane] + vector[32 + lane] * vector[96 + lane];
#pragma unroll
    for (int n = 0; n < 4; n++) {
      const int column = h0 + n * 8 + c;
      two z = {0.0f, 0.0f}, dz = {0.0f, 0.0f};
      if (has_norm) {
        z = *(const two *)(vector + column);
        dz = *(const two *)(vector + 64 + column);
      }
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const u32 query = *(const u32 *)(m + L::q + at<64>(row_of(h), column));
        const u32 key = *(const u32 *)(m + L::k + at<64>(row_of(h), column));
        const float row_amount = da[row_of(h)];
        float (&from)[4] = before[n], (&to)[4] = behind[n];
        const float qx = dq[n][h * 2] + (from[h * 2] + row_amount * z.x) * lead[h] * p.scale;
        const float qy = dq[n][h * 2 + 1] + (from[h * 2 + 1] + row_amount * z.y) * lead[h] * p.scale;
        const float kx = (to[h * 2] + dz.x) * tail[h], ky = (to[h * 2 + 1] + dz.y) * tail[h];
        const float inside = low_of(key) * dk[n][h * 2] + high_of(key) * dk[n][h * 2 + 1];
        row_share[h] += low_of(query) * qx + high_of(query) * qy - inside;
        const float outside = low_of(key) * kx + high_of(key) * ky;
        after[h] += outside;
        key_share[h] += inside + outside;
        const int channel = part * 64 + column;
        if (row_of(h) < rows && channel < p.keys) {
          const long long at = head_row + row_of(h) * head_stride + channel;
          store_two((E *)p.dq, at, qx, qy);
          store_two((E *)p.dk, at, dk[n][h * 2] + kx, dk[n][h * 2 + 1] + ky);
        }
      }
    }
    if (part + 1 < PARTS) __syncthreads();
  }
  if (p.n.d_input) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
      for (int s = 1; s < 4; s *= 2) key_share[h] += __shfl_xor_sync(0xffffffffu, key_share[h], s);
      if ((lane & 3) == 0) shares[512 + half * 64 + row_of(h)] = key_share[h];
    }
    __syncthreads();
    if ((int)threadIdx.x < rows)
      p.n.d_input[(token + threadIdx.x) * p.heads + head] =
          shares[512 + threadIdx.x] + shares[576 + threadIdx.x];
  }
  scalar_gate_gradients(p, shares, decays, row_share, after, carried, rows, token, head);
}
