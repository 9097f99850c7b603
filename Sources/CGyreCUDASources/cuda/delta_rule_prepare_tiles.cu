// The delta rules' prepare for Hopper where one decay serves all channels: bfloat16, keys of up to 64 or
// 128 channels. Of a record it writes what the walks by tiles read: P̃, K̃, d and the factors of rows.
//
// A block of four warps takes one chunk; five share a multiprocessor, so that one's copies and steps of
// one warp overlap another's products. The copy engine brings q and k and takes the results away. P stays
// in registers from its masks to P̃; T lies where q was, K̃ is left where k was.
// Variants: GYRE_KEYS=64,128
#include "chunk_solve.cuh"
#include "wgmma.cuh"

/// Boxes of 64 rows and 64 columns: `q`, `k` of a head, `tiles` of records as they lie. Of `m`: gate, beta,
/// reset, sizes; writes records, and where given extras and norms.
struct DeltaPrepareArgs {
  gyre_tensor_map q, k, tiles;
  MixerArgs m;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// Shared memory in bytes: k, later K̃ | q, later T | the rest of q, or more: A, later P̃ | …
template <int K>
struct DeltaPrepareLayout {
  static constexpr int panels = K / 64, tile = panels * PANEL * 2;
  static constexpr int q = tile, t = q, a = q + PANEL * 2;
  static constexpr int diagonal = a + PANEL * 2;  // float [4][256]
  static constexpr int decays = diagonal + 4096;
  static constexpr int after = decays + 1280;  // float [64]
  static constexpr int beta = after + 256;     // float [64]
  static constexpr int norms = beta + 256;     // float [2][64], of q and k
  static constexpr int barrier = norms + 512;
  static constexpr int bytes = barrier + 8;
};

/// One thread: contiguous bytes to global memory; they have left shared memory after finish_stores.
DEV void store_bytes(void *to, const void *from, u32 bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
               "r"(shared_address(from)), "r"(bytes)
               : "memory");
}

/// One thread: q and k of a chunk.
template <int K>
DEV void bring_chunk(const DeltaPrepareArgs &t, unsigned char *memory, u64 *full) {
  typedef DeltaPrepareLayout<K> L;
  const int key_head = (int)blockIdx.x / (t.m.heads / t.m.key_heads), row = blockIdx.y * CHUNK;
  barrier_expect(full, 2 * L::tile);
#pragma unroll
  for (int i = 0; i < L::panels; i++) {
    load_box((u16 *)memory + i * PANEL, t.k, i * 64, key_head, row, blockIdx.z, full);
    load_box((u16 *)(memory + L::q) + i * PANEL, t.q, i * 64, key_head, row, blockIdx.z, full);
  }
}

/// 1 / length of row `threadIdx.x & 63` of q, or of k from thread 64 on.
template <int K>
DEV float row_norm(const unsigned char *memory) {
  typedef DeltaPrepareLayout<K> L;
  const int row = threadIdx.x & 63;
  const u16 *tile = (const u16 *)(memory + (threadIdx.x < 64 ? L::q : 0)) + row * 64;
  float sum = 1e-6f;
#pragma unroll
  for (int i = 0; i < K / 8; i++) {
    const uint4 x = ((const uint4 *)(tile + i / 8 * PANEL))[i % 8 ^ (row & 7)];
    const u32 part[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int j = 0; j < 4; j++)
      sum += low_of(part[j]) * low_of(part[j]) + high_of(part[j]) * high_of(part[j]);
  }
  return 1.0f / sqrtf(sum);
}

/// Masks and decays of the two products of a warp's rows: P becomes an operand, A goes to `a`, its diagonal
/// block to `diagonal`. Pairs of different blocks of 16 tokens are split at the end of the earlier one, `after`
/// being from a token to there.
DEV void mask_products(const MixerArgs &p, const float (&scores)[8][4], const float (&keys)[8][4],
                       u32 (&weights)[4][4], const ScalarDecays &decays, const float *after, const float *beta,
                       const float *norms, u16 *a, float *diagonal) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = (lane & 3) * 2;
  const int first = warp * 16 + g;
  const float of_query[2] = {p.scale * norms[first], p.scale * norms[first + 8]};
  const float of_key[2] = {beta[first] * norms[64 + first], beta[first + 8] * norms[72 + first]};
#pragma unroll
  for (int b = 0; b < 4; b++) {
    float x[2][4], y[2][4];
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) x[n][e] = 0.0f;
    if (b < warp) {
      float row_query[2], row_key[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float f = decays.between(first + h * 8, b * 16 + 15);
        row_query[h] = f * of_query[h];
        row_key[h] = f * of_key[h];
      }
#pragma unroll
      for (int n = 0; n < 2; n++) {
        const int j = b * 16 + n * 8 + c;
        const two f = times(*(const two *)(after + j), *(const two *)(norms + 64 + j));
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const float column = e & 1 ? f.y : f.x;
          x[n][e] = scores[b * 2 + n][e] * row_query[e >> 1] * column;
          y[n][e] = keys[b * 2 + n][e] * row_key[e >> 1] * column;
        }
#pragma unroll
        for (int h = 0; h < 2; h++)
          *(u32 *)(a + at<64>(first + h * 8, j)) = pack2(y[n][h * 2], y[n][h * 2 + 1]);
      }
    } else if (b == warp) {
#pragma unroll
      for (int n = 0; n < 2; n++) {
        const int j = b * 16 + n * 8 + c;
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int h = e >> 1, distance = g + h * 8 - n * 8 - c - (e & 1);
          const float f = decays.between(first + h * 8, j + (e & 1)) * norms[64 + j + (e & 1)];
          x[n][e] = distance >= 0 ? scores[b * 2 + n][e] * (f * of_query[h]) : 0.0f;
          y[n][e] = distance > 0 ? keys[b * 2 + n][e] * (f * of_key[h]) : 0.0f;
        }
#pragma unroll
        for (int h = 0; h < 2; h++)
          *(two *)(diagonal + warp * 256 + (g + h * 8) * 16 + n * 8 + c) = {y[n][h * 2], y[n][h * 2 + 1]};
      }
    }
    as_a(weights[b], x[0], x[1]);
  }
}

/// Grid (H, chunks, B), 128 threads, DeltaPrepareLayout's bytes + 1,024 of shared memory.
template <int K>
DEV void delta_prepare(const DeltaPrepareArgs &t) {
  typedef DeltaPrepareLayout<K> L;
  typedef Record<BETA, K> R;
  const MixerArgs &p = t.m;
  SHARED(raw);
  unsigned char *memory = raw + ((1024 - (shared_address(raw) & 1023)) & 1023);
  u16 *k = (u16 *)memory, *solved = (u16 *)(memory + L::t), *a = (u16 *)(memory + L::a);
  float *diagonal = (float *)(memory + L::diagonal), *beta = (float *)(memory + L::beta);
  float *norms = (float *)(memory + L::norms), *after = (float *)(memory + L::after);
  ScalarDecays &decays = *(ScalarDecays *)(memory + L::decays);
  u64 *full = (u64 *)(memory + L::barrier);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = (lane & 3) * 2;
  const int row = threadIdx.x & 63, head = blockIdx.x, batch = blockIdx.z;
  const int start = blockIdx.y * CHUNK, index = (batch * p.heads + head) * p.chunks + blockIdx.y;
  const bool is_scaled = p.gate_kind || p.reset || p.normalize;

  if (threadIdx.x == 0) {
    barrier_init(full, 1);
    barrier_fence();
    bring_chunk<K>(t, memory, full);
  }
  __syncthreads();
  if (warp == 0) {
    GatePair gates;
    float m[2];
    gates.fetch(p, batch, head, start);
    decays.fill(p, gates, start, 0.0f, m);
    __syncwarp();
    const int end = lane * 2 | 15;
    *(two *)(after + lane * 2) = {decays.between(end, lane * 2), decays.between(end, lane * 2 + 1)};
  }
  if (threadIdx.x >= 64) {
    const int token = start + row;
    float x = 0.0f;
    if (token < p.tokens) x = load_any(p.beta, p.beta_is_float, ((long long)batch * p.tokens + token) * p.heads + head);
    // A strength of 0 counts as 1e-18, so that what a token would have written can be recovered.
    beta[row] = x < 1e-18f && x > -1e-18f ? 1e-18f : x;
  }

  float scores[8][4], keys[8][4];
  const u64 queries = panel_operand((u16 *)(memory + L::q)), rows = panel_operand(k);
  barrier_wait(full, 0);
  wgmma_fence();
#pragma unroll
  for (int s = 0; s < K / 16; s++) {
    wgmma<0>(scores, queries + panel_step(s), rows + panel_step(s), s);
    wgmma<0>(keys, rows + panel_step(s), rows + panel_step(s), s);
  }
  wgmma_commit();
  const float length = p.normalize ? row_norm<K>(memory) : 1.0f;
  norms[threadIdx.x] = length;
  if (p.normalize && p.norms) p.norms[index * 128ll + threadIdx.x] = length;
  wgmma_wait<0>();
  pin(scores);
  pin(keys);
  __syncthreads();  // q has been read

  u32 weights[4][4];
  mask_products(p, scores, keys, weights, decays, after, beta, norms, a, diagonal);
  unsigned char *record = p.records + (long long)index * R::bytes;
  const float lead = start + row < p.tokens ? decays.lead[row] * length : 0.0f;
  // Threads from 64 on have a key's length; the record begins with its factor.
  ((float *)(record + R::F * 2))[threadIdx.x ^ 64] = threadIdx.x < 64 ? p.scale * lead : -lead;
  if (threadIdx.x < K) ((float *)(record + R::D * 2))[threadIdx.x] = decays.lead[63];
  __syncwarp();
  invert(solved, diagonal, 256, a);
  proxy_fence();
  __syncthreads();

  {
    float o[8][4];
    hold(weights);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; j++) wgmma<1>(o, weights[j], panel_operand(solved) + turned_step(j), j);
    wgmma_commit();
    wgmma_wait<0>();
    pin(o);
    hold(weights);
#pragma unroll
    for (int n = 0; n < 8; n++) {
      const two f = *(const two *)(beta + n * 8 + c);
      o[n][0] *= f.x;
      o[n][1] *= f.y;
      o[n][2] *= f.x;
      o[n][3] *= f.y;
    }
    store_tile<64>(a, warp * 16, 0, o);
  }
  // K̃: tail and length go into Tᵀ, so that k stays as it came.
  u32 turned[4][4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    load_a_t<64>(turned[j], solved, warp * 16, j * 16);
    if (is_scaled)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int token = j * 16 + h * 8 + c;
        const two f = times(*(const two *)(decays.tail + token), *(const two *)(norms + 64 + token));
        turned[j][h * 2] = scaled(turned[j][h * 2], f);
        turned[j][h * 2 + 1] = scaled(turned[j][h * 2 + 1], f);
      }
  }
  // By 64 columns, for fewer registers and so more blocks of threads.
  const float low = beta[warp * 16 + g], high = beta[warp * 16 + g + 8];
  hold(turned);
#pragma unroll
  for (int part = 0; part < L::panels; part++) {
    float d[8][4];
    // The compiler takes the panels' products for one where both begin undefined.
    clear(d);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; j++) wgmma<1>(d, turned[j], panel_operand(k + part * PANEL) + turned_step(j), j);
    wgmma_commit();
    wgmma_wait<0>();
    pin(d);
#pragma unroll
    for (int n = 0; n < 8; n++) {
      d[n][0] *= low;
      d[n][1] *= low;
      d[n][2] *= high;
      d[n][3] *= high;
    }
    __syncthreads();  // this panel of k has been read
    store_tile<64>(k + part * PANEL, warp * 16, 0, d);
  }
  hold(turned);
  proxy_fence();
  __syncthreads();
  if (threadIdx.x == 0) {
    store_bytes(record + R::P * 2, a, PANEL * 2);
#pragma unroll
    for (int i = 0; i < L::panels; i++) store_box(t.tiles, k + i * PANEL, 0, i, 0, index);
    if (p.extras) store_bytes(p.extras + (long long)index * R::extra, solved, PANEL * 2);
    finish_stores();
  }
}

#define DELTA_PREPARE(K)                                                                       \
  ENTRY_BLOCKS(delta_rule_prepare_tiles_k##K, DeltaPrepareArgs, 128, 5, delta_prepare<K>(args))
#define DELTA_PREPARE_OF(K) DELTA_PREPARE(K)
DELTA_PREPARE_OF(GYRE_KEYS)

#endif
