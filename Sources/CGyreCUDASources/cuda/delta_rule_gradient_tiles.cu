// Gradients of the delta rule with one decay for all channels, for Hopper: bfloat16, keys and values of up to 64
// or 128 channels. The stages are those of chunk_gradient.cuh.
//
//     U = T β Y    A = s tril(dO Uᵀ) ∘ decay    B = −strict(dV Uᵀ) ∘ decay    (Y, dV: the walks')
//     dQ = A K + s lead ∘ dO Sᵀ    dK = B K − lead ∘ dV Sᵀ + Aᵀ Q + Bᵀ K + tail ∘ U dSᵀ
//
// A block of threads makes one chunk of one head, four warps to 64 key channels. dQ and dK are made turned, channels
// as rows: what is left of each product then comes from registers, the kept states as they lie in memory, and
// sums over a token's channels stay within a warp. The copy engine brings and takes all tiles.
// Variants: GYRE_KEYS=64,128
#include "chunk_common.cuh"
#include "wgmma.cuh"

/// gyre_cuda_delta_gradient_args
struct DeltaGradientArgs {
  gyre_tensor_map q, k, dy, dv, written, dq, dk;
  MixerArgs m;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

/// What a warp's channels give to the gradients of decays.
struct ChannelSums {
  float row[64], after[64];  // of each token: as rows less as columns of the chunk's products, and for later chunks
  float carried[2];          // of the states before and after the chunk, in the first
};

/// Beside the tiles.
struct GradientRest {
  ScalarDecays decays;
  float beta[64], norms[2][64];
  float strengths[2][64];    // of 64 value columns
  u64 first, second, third;  // T and Y; dO and dV; q and k
  ChannelSums sums[1];       // as many as warps
};

template <int K, int V>
struct DeltaGradientLayout {
  static constexpr bool is_small = K + V == 128;
  static constexpr int groups = K / 64, threads = groups * 128, blocks = is_small ? 4 : 2;
  static constexpr int keys = K / 64 * PANEL, values = V / 64 * PANEL;
  static constexpr int q = 0, k = keys, dy = 2 * keys, dv = dy + values, u = dv + values, t = u + values;
  static constexpr int b = t, a = is_small ? dy : t + PANEL;
  static constexpr int rest = (t + (is_small ? 1 : 2) * PANEL) * 2;
  static constexpr int bytes = rest + sizeof(GradientRest) + (groups * 4 - 1) * sizeof(ChannelSums);
};

/// One thread: asks for a chunk's tiles, first needed first.
template <int K, int V>
DEV void bring(const DeltaGradientArgs &t, u16 *m, GradientRest &x, int start, int batch, int head, long long place) {
  typedef DeltaGradientLayout<K, V> L;
  const int key_head = head / (t.m.heads / t.m.key_heads);
  barrier_expect(&x.first, PANEL * 2 + L::values * 2);
  load_bytes(m + L::t, t.m.extras + place * Record<BETA, K>::extra, PANEL * 2, &x.first);
  const auto panels = [&](int to, const gyre_tensor_map &map, int count, int head, u64 *b) {
    for (int i = 0; i < count; i++) load_box(m + to + i * PANEL, map, i * 64, head, start, batch, b);
  };
  panels(L::u, t.written, V / 64, head, &x.first);
  barrier_expect(&x.second, L::values * 4);
  panels(L::dv, t.dv, V / 64, head, &x.second);
  panels(L::dy, t.dy, V / 64, head, &x.second);
  barrier_expect(&x.third, L::keys * 4);
  panels(L::k, t.k, K / 64, key_head, &x.third);
  panels(L::q, t.q, K / 64, key_head, &x.third);
}

/// 16 key channels of a kept [V, K] state on their way to being rows of an operand.
template <int K, int V>
struct TurnedState {
  uint4 piece[V / 16];
  DEV_MEMBER void fetch(const void *kept, long long place, int values) {
    const int blocks = (values + 15) / 16, column = threadIdx.x >> 5;
    const uint4 *from = (const uint4 *)kept + (place * blocks * (K / 16) + column) * 32 + (threadIdx.x & 31);
#pragma unroll
    for (int i = 0; i < V / 16; i++) {
      piece[i] = {0, 0, 0, 0};
      if (i < blocks) piece[i] = from[i * (K / 16) * 32];
    }
  }
  DEV_MEMBER void turn(u32 (&a)[V / 16][4]) const {
#pragma unroll
    for (int i = 0; i < V / 16; i++) {
      a[i][0] = turned(piece[i].x);
      a[i][1] = turned(piece[i].z);
      a[i][2] = turned(piece[i].y);
      a[i][3] = turned(piece[i].w);
    }
  }
};

DEV float dot2(u32 a, u32 b) {
  return low_of(a) * low_of(b) + high_of(a) * high_of(b);
}

/// Half of the values stay with each of two lanes, as sums over both.
template <int HALF>
DEV void fold(float (&v)[16]) {
  const bool keeps_upper = threadIdx.x & (HALF * 2);
#pragma unroll
  for (int i = 0; i < HALF; i++) {
    const float gone = keeps_upper ? v[i] : v[i + HALF], kept = keeps_upper ? v[i + HALF] : v[i];
    v[i] = kept + __shfl_xor_sync(0xffffffffu, gone, HALF * 2);
  }
}

/// A warp's 16 channels of 16 tokens of a [token][channel] panel, as rows of an operand.
DEV void load_turned(u32 (&a)[4], const u16 *panel, int warp, int step, const float *norms, int c) {
  load_a_t<64>(a, panel, warp * 16, step * 16);
  if (!norms) return;
  const two low = *(const two *)(norms + step * 16 + c), high = *(const two *)(norms + step * 16 + c + 8);
  a[0] = scaled(a[0], low);
  a[1] = scaled(a[1], low);
  a[2] = scaled(a[2], high);
  a[3] = scaled(a[3], high);
}
DEV void load_turned(u32 (&a)[4][4], const u16 *panel, int warp, const float *norms, int c) {
#pragma unroll
  for (int j = 0; j < 4; j++) load_turned(a[j], panel, warp, j, norms, c);
}
/// [channel][token] accumulators times the same place of a panel: sums over the warp's channels for tokens 2 lane and
/// 2 lane + 1. The panel is read again, so that fewer registers are held.
DEV two sum_channels(const u16 *panel, int warp, const float *norms, int c, const float (&d)[8][4]) {
  float v[16];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    u32 a[4];
    load_turned(a, panel, warp, j, norms, c);
#pragma unroll
    for (int n = 0; n < 2; n++) {
      const float(&x)[4] = d[j * 2 + n];
      v[j * 4 + n * 2] = low_of(a[n * 2]) * x[0] + low_of(a[n * 2 + 1]) * x[2];
      v[j * 4 + n * 2 + 1] = high_of(a[n * 2]) * x[1] + high_of(a[n * 2 + 1]) * x[3];
    }
  }
  fold<8>(v);
  fold<4>(v);
  fold<2>(v);
  return {v[0], v[1]};
}

/// Columns of turned accumulators times factors of the tokens.
DEV void scale_tokens(float (&d)[8][4], const float *factors, float all, int c) {
#pragma unroll
  for (int n = 0; n < 8; n++) {
    const two f = *(const two *)(factors + n * 8 + c);
    d[n][0] *= f.x * all;
    d[n][1] *= f.y * all;
    d[n][2] *= f.x * all;
    d[n][3] *= f.y * all;
  }
}

/// Turned accumulators into that place.
DEV void put_turned(u16 *panel, int warp, const float (&d)[8][4]) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    u32 a[4];
    as_a(a, d[j * 2], d[j * 2 + 1]);
    stsm4t(panel + at<64>(j * 16 + (lane >> 4) * 8 + (lane & 7), warp * 16 + (lane >> 3 & 1) * 8), a);
  }
}
/// Accumulators as the A operands of products, and these into a panel, tokens as rows.
DEV void pack(u32 (&a)[4][4], const float (&d)[8][4]) {
#pragma unroll
  for (int j = 0; j < 4; j++) as_a(a[j], d[j * 2], d[j * 2 + 1]);
}
DEV void put(u16 *panel, int warp, const u32 (&a)[4][4]) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int j = 0; j < 4; j++) stsm4(panel + at<64>(warp * 16 + (lane & 15), (j * 2 + (lane >> 4)) * 8), a[j]);
}

/// Gradients of masked products: times the decays between their tokens.
DEV void mask(float (&d)[8][4], const ScalarDecays &decays, float factor, bool is_strict, bool has_decays, int warp) {
  const int lane = threadIdx.x & 31, i = warp * 16 + (lane >> 2), c = (lane & 3) * 2;
  const float row[2] = {decays.row[i], decays.row[i + 8]}, closed[2] = {decays.closed[i], decays.closed[i + 8]};
#pragma unroll
  for (int n = 0; n < 8; n++) {
    if (n / 2 > warp) {
      d[n][0] = d[n][1] = d[n][2] = d[n][3] = 0.0f;
      continue;
    }
    two column = {0.0f, 0.0f}, shut = {0.0f, 0.0f};
    if (has_decays) {
      column = *(const two *)(decays.column + n * 8 + c);
      shut = *(const two *)(decays.closed + n * 8 + c);
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
      float f = factor;
      if (has_decays) {
        const float x = row[e >> 1] - (e & 1 ? column.y : column.x);
        f *= exp2_of(x < 0.0f ? x : 0.0f);
        if (closed[e >> 1] != (e & 1 ? shut.y : shut.x)) f = 0.0f;
      }
      const int past = n * 8 + c + (e & 1) - (i + (e >> 1) * 8);
      d[n][e] = past < 0 || (past == 0 && !is_strict) ? d[n][e] * f : 0.0f;
    }
  }
}

/// One warp: gradients of the log decays, two tokens a lane.
template <int WARPS>
DEV void write_gates(const MixerArgs &p, const GradientRest &x, int rows, long long token, int head) {
  const int lane = threadIdx.x & 31;
  two row = {0.0f, 0.0f}, after = {0.0f, 0.0f};
  float through = 0.0f;
#pragma unroll
  for (int w = 0; w < WARPS; w++) {
    const two r = *(const two *)(x.sums[w].row + lane * 2), a = *(const two *)(x.sums[w].after + lane * 2);
    row = {row.x + r.x, row.y + r.y};
    after = {after.x + a.x, after.y + a.y};
    through += x.sums[w].carried[0];
  }
  through *= x.decays.lead[63];
  // Rows from a token on, and columns before it.
  float back = row.x + row.y, ahead = after.x + after.y;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const float b = __shfl_sync(0xffffffffu, back, lane + d), a = __shfl_up_sync(0xffffffffu, ahead, d);
    if (lane + d < 32) back += b;
    if (lane >= d) ahead += a;
  }
  const float grown[2] = {back + ahead - after.x - after.y, back - row.x + ahead - after.y};
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int t = lane * 2 + i;
    if (t >= rows) continue;
    const bool is_closed = x.decays.closed[t] != (t ? x.decays.closed[t - 1] : 0.0f);
    ((float *)p.d_gate)[(token + t) * p.heads + head] = is_closed ? 0.0f : grown[i] + through;
  }
}

/// The barrier's number is constant: a kernel that does not know it takes all sixteen.
template <int GROUPS>
DEV void wait_for_group(int group) {
  if (GROUPS > 1 && group)
    group_wait(1);
  else
    group_wait(0);
}

/// Grid (N, B·H), DeltaGradientLayout's threads, its bytes + 1,024 of shared memory. Reads q, k, dy, dv, written, gate,
/// beta, reset, norms, extras, states, state_gradients; writes dq, dk, d_gate, d_beta.
template <int K, int V>
DEV void delta_gradient(const DeltaGradientArgs &t) {
  typedef DeltaGradientLayout<K, V> L;
  SHARED(raw);
  u16 *m = (u16 *)(raw + ((1024 - (shared_address(raw) & 1023)) & 1023));
  GradientRest &x = *(GradientRest *)((unsigned char *)m + L::rest);
  const MixerArgs &p = t.m;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3;
  const int group = L::groups == 1 ? 0 : threadIdx.x >> 7;
  const int g = lane >> 2, c = (lane & 3) * 2;
  const int chunk = blockIdx.x, index = blockIdx.y, batch = index / p.heads, head = index % p.heads;
  const int start = chunk * CHUNK, rows = p.tokens - start < CHUNK ? p.tokens - start : CHUNK;
  const long long place = (long long)index * p.chunks + chunk, token = (long long)batch * p.tokens + start;
  const bool has_decays = p.gate_kind || p.reset;
  if (threadIdx.x == 0) {
    barrier_init(&x.first, 1);
    barrier_init(&x.second, 1);
    barrier_init(&x.third, 1);
    barrier_fence();
    bring<K, V>(t, m, x, start, batch, head, place);
    const u32 bytes = (p.values + 15) / 16 * K * 32;
    if (!p.d_gate) prefetch_bytes((const unsigned char *)p.state_gradients + place * bytes, bytes);
  }
  __syncwarp();
  TurnedState<K, V> state;
  state.fetch(p.states, place, p.values);
  if (threadIdx.x < 32) {
    GatePair gates;
    gates.fetch(p, batch, head, start);
    float top[2];
    x.decays.fill(p, gates, start, 0.0f, top);
  } else if (threadIdx.x < 96) {
    const int i = threadIdx.x - 32;
    const float b = i < rows ? load_any(p.beta, p.beta_is_float, (token + i) * p.heads + head) : 0.0f;
    x.beta[i] = b < 1e-18f && b > -1e-18f ? 1e-18f : b;
    if (p.normalize) {
      x.norms[0][i] = p.norms[place * 128 + i];
      x.norms[1][i] = p.norms[place * 128 + 64 + i];
    }
  }
  u32 s[V / 16][4];
  if (p.d_gate) {
    TurnedState<K, V> slope;
    slope.fetch(p.state_gradients, place, p.values);
    float carried = 0.0f;
#pragma unroll
    for (int i = 0; i < V / 16; i++) {
      const uint4 a = state.piece[i], b = slope.piece[i];
      carried += dot2(a.x, b.x) + dot2(a.y, b.y) + dot2(a.z, b.z) + dot2(a.w, b.w);
    }
#pragma unroll
    for (int d = 1; d < 32; d *= 2) carried += __shfl_xor_sync(0xffffffffu, carried, d);
    if (lane == 0) x.sums[threadIdx.x >> 5].carried[0] = carried;
  }
  state.turn(s);
  __syncthreads();

  // U takes the place of Y.
  barrier_wait(&x.first, 0);
#pragma unroll
  for (int n = group; n < V / 64; n += L::groups) {
    u16 *panel = m + L::u + n * PANEL;
    float u[8][4];
    u32 a[4][4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      load_a<64>(a[j], m + L::t, warp * 16, j * 16);
      const two low = *(const two *)(x.beta + j * 16 + c), high = *(const two *)(x.beta + j * 16 + c + 8);
      a[j][0] = scaled(a[j][0], low);
      a[j][1] = scaled(a[j][1], low);
      a[j][2] = scaled(a[j][2], high);
      a[j][3] = scaled(a[j][3], high);
    }
    hold(a);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; j++) wgmma<1>(u, a[j], panel_operand(panel) + turned_step(j), j);
    wgmma_commit();
    barrier_wait(&x.second, 0);
    wgmma_wait<0>();
    pin(u);
    hold(a);
    wait_for_group<L::groups>(group);
    pack(a, u);
    put(panel, warp, a);
    if (!p.d_beta) continue;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = warp * 16 + g + h * 8;
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const u32 d = *(const u32 *)(m + L::dv + n * PANEL + at<64>(row, i * 8 + c));
        sum += low_of(d) * u[i][h * 2] + high_of(d) * u[i][h * 2 + 1];
      }
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if ((lane & 3) == 0) x.strengths[n][row] = sum;
    }
  }
  proxy_fence();
  __syncthreads();
  if (p.d_beta && (int)threadIdx.x < rows) {
    const int i = threadIdx.x;
    const float b = x.beta[i], sum = x.strengths[0][i] + (V > 64 ? x.strengths[1][i] : 0.0f);
    p.d_beta[(token + i) * p.heads + head] = sum / b / b;
  }

  barrier_wait(&x.second, 0);
  const u64 dy = panel_operand(m + L::dy), dv = panel_operand(m + L::dv), written = panel_operand(m + L::u);
  const u64 first = panel_operand(m + L::a), second = panel_operand(m + L::b);
  // A, B and the state's part of dQ.
  float dq[8][4], dk[8][4];
  u32 kept[4][4];
  hold(s);
#pragma unroll
  for (int which = group; which < 2; which += L::groups) {
    float d[8][4];
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < V / 16; i++)
      wgmma<0>(d, (which ? dv : dy) + panel_step(i), written + panel_step(i), i);
    wgmma_commit();
    if (which + L::groups >= 2) {
#pragma unroll
      for (int i = 0; i < V / 16; i++) wgmma<0>(dq, s[i], dy + panel_step(i), i);
      wgmma_commit();
      wgmma_wait<1>();
    } else {
      wgmma_wait<0>();
    }
    pin(d);
    mask(d, x.decays, which ? -1.0f : p.scale, which, has_decays, warp);
    if (L::is_small && !which) {
      pack(kept, d);
      continue;
    }
    u32 a[4][4];
    pack(a, d);
    put(m + (which ? L::b : L::a), warp, a);
  }
  wgmma_wait<0>();
  pin(dq);
  hold(s);
  if (L::is_small) {
    // A takes the place of dO.
    __syncthreads();
    put(m + L::a, warp, kept);
  }
  proxy_fence();
  __syncthreads();

  // dQ, and what rows give to dK.
  u16 *const q = m + L::q + group * PANEL, *const k = m + L::k + group * PANEL;
  u32 keys[4][4], queries[4][4];
  const float *const query_norms = p.normalize ? x.norms[0] : nullptr;
  const float *const key_norms = p.normalize ? x.norms[1] : nullptr;
  two row_share = {0.0f, 0.0f}, after = {0.0f, 0.0f};
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < V / 16; i++) wgmma<0>(dk, s[i], dv + panel_step(i), i);
  wgmma_commit();
  scale_tokens(dq, x.decays.lead, p.scale, c);
  wgmma_wait<0>();
  pin(dk);
  hold(s);
  barrier_wait(&x.third, 0);
  load_turned(keys, k, warp, key_norms, c);
  scale_tokens(dk, x.decays.lead, -1.0f, c);
  pin(dq);
  pin(dk);
  hold(keys);
  wgmma_fence();
#pragma unroll
  for (int j = 0; j < 4; j++) wgmma<0>(dq, keys[j], first + panel_step(j), 1);
  wgmma_commit();
#pragma unroll
  for (int j = 0; j < 4; j++) wgmma<0>(dk, keys[j], second + panel_step(j), 1);
  wgmma_commit();
  wgmma_wait<1>();
  pin(dq);
  if (p.d_gate) row_share = sum_channels(q, warp, query_norms, c, dq);
  wgmma_wait<0>();
  pin(dk);
  hold(keys);
  load_turned(queries, q, warp, query_norms, c);
  put_turned(q, warp, dq);
  proxy_fence();
  wait_for_group<L::groups>(group);
  if (threadIdx.x % 128 == 0) store_box(t.dq, q, group * 64, head, start, batch);
  state.fetch(p.state_gradients, place, p.values);
  if (p.d_gate) {
    const two sum = sum_channels(k, warp, key_norms, c, dk);
    row_share = {row_share.x + 2.0f * sum.x, row_share.y + 2.0f * sum.y};
  }

  // What columns give to dK.
  pin(dk);
  hold(queries);
  wgmma_fence();
#pragma unroll
  for (int j = 0; j < 4; j++) wgmma<1>(dk, queries[j], first + turned_step(j), 1);
#pragma unroll
  for (int j = 0; j < 4; j++) wgmma<1>(dk, keys[j], second + turned_step(j), 1);
  wgmma_commit();
  wgmma_wait<0>();
  pin(dk);
  hold(queries);
  hold(keys);
  if (p.d_gate) {
    // Rows and columns until now, twice rows before.
    const two sum = sum_channels(k, warp, key_norms, c, dk);
    row_share = {row_share.x - sum.x, row_share.y - sum.y};
  }
  float d[8][4];
  state.turn(s);
  hold(s);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < V / 16; i++) wgmma<0>(d, s[i], written + panel_step(i), i);
  wgmma_commit();
  wgmma_wait<0>();
  pin(d);
  hold(s);
  scale_tokens(d, x.decays.tail, 1.0f, c);
  if (p.d_gate) after = sum_channels(k, warp, key_norms, c, d);
#pragma unroll
  for (int n = 0; n < 8; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) dk[n][e] += d[n][e];
  put_turned(k, warp, dk);
  proxy_fence();
  if (p.d_gate) {
    *(two *)(x.sums[threadIdx.x >> 5].row + lane * 2) = row_share;
    *(two *)(x.sums[threadIdx.x >> 5].after + lane * 2) = after;
  }
  __syncthreads();
  if (threadIdx.x % 128 == 0) store_box(t.dk, k, group * 64, head, start, batch);
  __syncwarp();
  if (p.d_gate && threadIdx.x < 32) write_gates<L::groups * 4>(p, x, rows, token, head);
  if (threadIdx.x % 128 == 0) finish_stores();
}

#define DELTA_GRADIENT(K, V)                                                                          \
  ENTRY_BLOCKS(delta_rule_gradient_tiles_k##K##_v##V, DeltaGradientArgs, (DeltaGradientLayout<K, V>::threads), \
               (DeltaGradientLayout<K, V>::blocks), delta_gradient<K, V>(args))
#define DELTA_GRADIENT_OF(K) \
  DELTA_GRADIENT(K, 64)      \
  DELTA_GRADIENT(K, 128)
DELTA_GRADIENT_OF(GYRE_KEYS)

#endif
