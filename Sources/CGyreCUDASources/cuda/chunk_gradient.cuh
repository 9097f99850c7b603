// gradient: all gradients of a chunk from the state entering it (S) and the gradient of the state
// leaving it (dS), both kept by the walks.
//
//     linear        N = V                     dV = P̃ᵀ dO + K̃ dS
//     delta rule    N = T β Y                 R = dV, from walk_back,  dβ = rowsum(dV ∘ N) / β²
//     generalised   N = M V + W S             dV as linear,  R = Tᵀ (A_qbᵀ dO + B̂ dS)
//
// The gradients of the masked products, dA_qk = s tril(dO Xᵀ) with X = N (generalised: V, and
// dA_qb with N), dA_kk = −strict(dV Nᵀ), dA_ak = strict(R Vᵀ), dA_ab = strict(R Nᵀ), go to the rows
// and columns through the same hierarchy of halves as in prepare. The gradient of a token's log
// decay is the sum over all pairs whose path crosses it; each level's pairs cross the tokens of the
// later half up to the row and those of the earlier half from the column on, so nothing is
// subtracted.
#pragma once
#include "chunk_gradient_levels.cuh"
#include "chunk_gradient_scalar.cuh"

/// Chunk `chunk` of row `index` of B·H, 256 threads, GradientLayout::bytes of shared memory; V:
/// values rounded up to 64 or 128. Reads q, k, v, a, b, gate, beta, reset, records, extras, states,
/// state_gradients, dy, of the delta rule written and dv in place of v and records; writes dq, dk, da,
/// db, d_gate, d_beta, and dv of the other rules. SCALAR: gate kinds 0 to 2,
/// the delta rule only, and faster; without it any kind.
template <int RULE, int K, int V, bool SCALAR, typename E>
DEV void gradient(const MixerArgs &p, int chunk, int index) {
  typedef GradientLayout<RULE, K, V, SCALAR> L;
  typedef Record<RULE, K> R;
  constexpr int grams = RULE == LINEAR ? 1 : RULE == BETA ? 2 : 4;
  SHARED(memory);
  u16 *m = (u16 *)memory;
  float *total = (float *)(m + L::total), *cross = (float *)(m + L::cross);
  float *carries = (float *)(m + L::carry), *sums = (float *)(m + L::sums);
  float *beta = (float *)(m + L::beta), *scalar = (float *)(m + L::scalar);
  float *strengths = (float *)(m + L::strength);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = (lane & 3) * 2;
  const int w = warp & 3, half = warp >> 2;
  const int batch = index / p.heads, head = index % p.heads;
  const int start = chunk * CHUNK;
  const int key_head = head / (p.heads / p.key_heads);
  const long long place = (long long)index * p.chunks + chunk;
  const u16 *record = (const u16 *)(p.records + place * R::bytes);
  const int rows = p.tokens - start < CHUNK ? p.tokens - start : CHUNK;
  const long long token = (long long)batch * p.tokens + start;
  const long long value_row = (token * p.heads + head) * p.values;
  const long long value_stride = (long long)p.heads * p.values;
  const long long key_row = (token * p.key_heads + key_head) * p.keys;
  const long long key_stride = (long long)p.key_heads * p.keys;
  const long long head_row = (token * p.heads + head) * p.keys,
                  head_stride = (long long)p.heads * p.keys;

  GatePair gates;
  if (SCALAR && warp == 0) gates.fetch(p, batch, head, start);
  KeptState<K, V> state, state_gradient;
  if (SCALAR) {
    ScalarGradients<K, V>::announce(p, place);
  } else {
    state.fetch(p.states, place, p.values);
    state_gradient.fetch(p.state_gradients, place, p.values);
  }
  const void *v = RULE == BETA ? p.written : p.v;
  load_rows<V>(m + L::v, (const E *)v, value_row, value_stride, rows, p.values, 256);
  load_rows<V>(m + L::dy, (const E *)p.dy, value_row, value_stride, rows, p.values, 256);
  const auto image = [&](int to, const u16 *from, int count) {
    for (int i = threadIdx.x * 8; i < count; i += 256 * 8) copy16(m + to + i, from + i, true);
  };
  if (RULE == BETA)
    load_rows<V>(m + L::r, (const E *)p.dv, value_row, value_stride, rows, p.values, 256);
  else
    image(L::p, record + R::P, 4096 + 64 * K);
  if (RULE != LINEAR) {
    const u16 *extra = (const u16 *)(p.extras + place * R::extra);
    if (RULE == GENERAL) {
      image(L::w, record + R::W, 64 * K);
      image(L::b, record + R::B, 64 * K);
    }
    image(L::t, extra, RULE == GENERAL ? 3 * 4096 : 4096);
  }
  constexpr int W = SCALAR ? K : 64;
  load_rows<W>(m + L::raw_q, (const E *)p.q, key_row, key_stride, rows, p.keys, 256);
  load_rows<W>(m + L::raw_k, (const E *)p.k, key_row, key_stride, rows, p.keys, 256);
  copy_commit();
  if (!SCALAR) {
    state.put(m + L::s);
    state_gradient.put(m + L::ds);
  }
  if (RULE == BETA && threadIdx.x < CHUNK) {
    float x = 0.0f;
    if ((int)threadIdx.x < rows)
      x = load_any(p.beta, p.beta_is_float, (token + threadIdx.x) * p.heads + head);
    beta[threadIdx.x] = x < 1e-18f && x > -1e-18f ? 1e-18f : x;
  }
  ScalarDecays &decays = *(ScalarDecays *)total;
  if (SCALAR) {
    if (warp == 0) decays.fill(p, gates, batch, head, start);
  } else {
    load_scalar_decays(scalar, p, batch, head, start);
  }
  if (threadIdx.x < 128) sums[threadIdx.x] = 0.0f;
  const u32 resets = SCALAR ? 0 : load_resets(p, batch, start + w * 16);
  copy_wait<0>();
  __syncthreads();
  if (p.normalize) scale_raw<W>(p, m + L::raw_q, m + L::raw_k, place);  // read after later barriers

  // Stage 1, rows of block w, half of the value columns: N, dV, R.
  constexpr int VN = V / 16;  // accumulators of V / 2 columns
  const int v0 = half * (V / 2);
  float dv[VN][4], nv[VN][4], rv[VN][4];
  clear(dv);
  clear(nv);
  clear(rv);
  // d += (a tile of rows) × [k][n] tile, or × [n][k] tile of keys.
  const auto with_values = [&](float (&d)[VN][4], const u32(&a)[4], const u16 *tile, int row) {
#pragma unroll
    for (int n = 0; n < VN / 2; n++) {
      u32 b[4];
      load_b_t<V>(b, tile, v0 + n * 16, row);
      mma(d[n * 2], a, b[0], b[1]);
      mma(d[n * 2 + 1], a, b[2], b[3]);
    }
  };
  const auto with_state = [&](float (&d)[VN][4], const u16 *keys, const u16 *state) {
#pragma unroll
    for (int s = 0; s < K / 16; s++) {
      u32 a[4];
      load_a<K>(a, keys, w * 16, s * 16);
#pragma unroll
      for (int n = 0; n < VN / 2; n++) {
        u32 b[4];
        load_b<K>(b, state, v0 + n * 16, s * 16);
        mma(d[n * 2], a, b[0], b[1]);
        mma(d[n * 2 + 1], a, b[2], b[3]);
      }
    }
  };
  if (RULE != BETA) with_state(dv, m + L::kt, m + L::ds);
  if (RULE == GENERAL) {
    with_state(nv, m + L::w, m + L::s);
    with_state(rv, m + L::b, m + L::ds);
  }
#pragma unroll
  for (int j = 0; j < 4; j++) {
    u32 a[4];
    if (RULE != BETA && j >= w) {
      load_a_t<64>(a, m + L::p, w * 16, j * 16);
      with_values(dv, a, m + L::dy, j * 16);
      if (RULE == GENERAL) {
        load_a_t<64>(a, m + L::qb_tile, w * 16, j * 16);
        with_values(rv, a, m + L::dy, j * 16);
      }
    }
    if (RULE != LINEAR && j <= w) {
      load_a<64>(a, m + (RULE == BETA ? L::t : L::m), w * 16, j * 16);
      if (RULE == BETA) {
        // Columns of T times β.
        const float low0 = beta[j * 16 + c], low1 = beta[j * 16 + c + 1];
        const float high0 = beta[j * 16 + c + 8], high1 = beta[j * 16 + c + 9];
        a[0] = scaled(a[0], {low0, low1});
        a[1] = scaled(a[1], {low0, low1});
        a[2] = scaled(a[2], {high0, high1});
        a[3] = scaled(a[3], {high0, high1});
      }
      with_values(nv, a, m + L::v, j * 16);
    }
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = w * 16 + g + h * 8;
    if (RULE == BETA) {
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < VN; n++) {
        const u32 x = *(const u32 *)(m + L::r + at<V>(row, v0 + n * 8 + c));
        sum += low_of(x) * nv[n][h * 2] + high_of(x) * nv[n][h * 2 + 1];
      }
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if ((lane & 3) == 0) strengths[half * 64 + row] = sum;
    } else if (row < rows) {
#pragma unroll
      for (int n = 0; n < VN; n++) {
        const int column = v0 + n * 8 + c;
        if (column < p.values)
          store_two((E *)p.dv, value_row + row * value_stride + column, dv[n][h * 2],
                    dv[n][h * 2 + 1]);
      }
    }
  }
  // ⟨S, dS⟩ of each channel, in eight shares; later summed in a fixed order.
  const auto add_carry = [&](int part) {
    const int pair = threadIdx.x & 31, group = threadIdx.x >> 5;
    two sum = {0.0f, 0.0f};
#pragma unroll 4
    for (int v = group; v < V; v += 8) {
      const u32 x = *(const u32 *)(m + L::s + at<K>(v, part * 64 + pair * 2));
      const u32 y = *(const u32 *)(m + L::ds + at<K>(v, part * 64 + pair * 2));
      sum.x += low_of(x) * low_of(y);
      sum.y += high_of(x) * high_of(y);
    }
    *(two *)(carries + group * 64 + pair * 2) = sum;
  };
  __syncthreads();
  if (RULE == GENERAL) {
    // R = Tᵀ dZ; dZ where N comes later. T stays where it is until the next barrier.
    store_tile<V>(m + L::n, w * 16, v0, rv);
    __syncthreads();
    clear(rv);
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (j >= w) {
        u32 a[4];
        load_a_t<64>(a, m + L::t, w * 16, j * 16);
        with_values(rv, a, m + L::n, j * 16);
      }
    __syncthreads();
  }
  if (RULE != LINEAR) {
    store_tile<V>(m + L::n, w * 16, v0, nv);
    if (RULE == GENERAL) store_tile<V>(m + L::r, w * 16, v0, rv);
  }
  if (RULE == BETA && threadIdx.x < rows && p.d_beta) {
    const float x = beta[threadIdx.x];
    p.d_beta[(token + threadIdx.x) * p.heads + head] =
        (strengths[threadIdx.x] + strengths[64 + threadIdx.x]) / x / x;
  }
  ScalarGradients<K, V> last;
  if (SCALAR) last.fetch(p, place);
  __syncthreads();

  // Stage 2: gradients of the masked products; warp (w, half) makes column blocks 2 half, 2 half
  // + 1.
  {
    const auto masked = [&](const u16 *left, const u16 *right, u16 *to, float factor,
                            bool is_strict) {
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int block = half * 2 + j;
        float d[2][4];
        clear(d);
        if (block <= w)
#pragma unroll
          for (int s = 0; s < V / 16; s++) {
            u32 a[4], b[4];
            load_a<V>(a, left, w * 16, s * 16);
            load_b<V>(b, right, block * 16, s * 16);
            mma(d[0], a, b[0], b[1]);
            mma(d[1], a, b[2], b[3]);
          }
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
          for (int e = 0; e < 4; e++) {
            const int i = w * 16 + g + (e >> 1) * 8, column = block * 16 + n * 8 + c + (e & 1);
            const bool is_inside = column < i || (column == i && !is_strict);
            d[n][e] = is_inside ? d[n][e] * factor : 0.0f;
            if (SCALAR && is_inside) d[n][e] *= decays.between(i, column);
          }
        store_tile<64>(to, w * 16, block * 16, d);
      }
    };
    const u16 *direct = m + (RULE == BETA ? L::n : L::v);
    masked(m + L::dy, direct, m + L::qk, p.scale, false);
    if (RULE != LINEAR) masked(m + L::r, direct, m + L::ak, RULE == BETA ? -1.0f : 1.0f, true);
    if (RULE == GENERAL) {
      masked(m + L::dy, m + L::n, m + L::qb, p.scale, false);
      masked(m + L::r, m + L::n, m + L::ab, 1.0f, true);
    }
  }
  __syncthreads();
  if constexpr (SCALAR) {
    static_assert(RULE == BETA, "linear attention has chunk_gradient_linear.cuh");
    last.template run<E>(p, m, decays, place, head_row, head_stride, rows, token, head);
    return;
  }

  Adjoint<RULE> x;
  x.q = m + L::raw_q;
  x.k = m + L::raw_k;
  x.a = m + L::raw_a;
  x.b = m + L::raw_b;
  x.exchange = (float *)(m + L::exchange + warp * 1280);
  x.block = w;
  x.half = half;
  x.pair = lane & 15;
  x.octet = lane >> 4;
  x.resets = resets >> (x.octet * 8) & 0xff;
  u16 *t = m + L::exchange, *t2 = t + 4096;
  u32 low[grams][4], up[grams][4];
#pragma unroll
  for (int i = 0; i < grams; i++) {
    const u16 *from = m + (i == 0 ? L::qk : i == 1 ? L::ak : i == 2 ? L::qb : L::ab);
    load_a<64>(low[i], from, w * 16, w * 16);
    load_a_t<64>(up[i], from, w * 16, w * 16);
  }

#pragma unroll 1
  for (int part = 0; part < K / 64; part++) {
    if (part || RULE == GENERAL) {
      if (part) {
        __syncthreads();
        load_rows<64>(m + L::raw_q, (const E *)p.q, key_row + part * 64, key_stride, rows,
                      p.keys - part * 64, 256);
        load_rows<64>(m + L::raw_k, (const E *)p.k, key_row + part * 64, key_stride, rows,
                      p.keys - part * 64, 256);
      }
      if (RULE == GENERAL) {
        load_rows<64>(m + L::raw_a, (const E *)p.a, head_row + part * 64, head_stride, rows,
                      p.keys - part * 64, 256);
        load_rows<64>(m + L::raw_b, (const E *)p.b, head_row + part * 64, head_stride, rows,
                      p.keys - part * 64, 256);
      }
      copy_commit();
    }
    add_carry(part);
    const int channel = part * 64 + half * 32 + x.pair * 2;
    load_decays(x.before, p, batch, head, start + w * 16 + x.octet * 8, channel, x.resets,
                scalar + w * 16 + x.octet * 8);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      x.dq[i] = x.dk[i] = x.dg[i] = {0.0f, 0.0f};
      x.after[i] = {1.0f, 1.0f};
      if (RULE == GENERAL)
        x.da[RULE == GENERAL ? i : 0] = x.db[RULE == GENERAL ? i : 0] = {0.0f, 0.0f};
    }
    copy_wait<0>();
    __syncthreads();
    if (part && p.normalize) {
      scale_raw<64>(p, m + L::raw_q, m + L::raw_k, place);
      __syncthreads();
    }

    block_level<RULE, 1, L>(x, m, low, up);
    widen8<1>(x.before, x.after);
    block_level<RULE, 2, L>(x, m, low, up);
    widen8<2>(x.before, x.after);
    block_level<RULE, 4, L>(x, m, low, up);
    widen8<4>(x.before, x.after);
    block_level<RULE, 8, L>(x, m, low, up);
    const two octet_total = {__shfl_xor_sync(0xffffffffu, x.before[7].x, 16),
                             __shfl_xor_sync(0xffffffffu, x.before[7].y, 16)};
    const two one = {1.0f, 1.0f};
    const two first = x.octet ? octet_total : one;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (x.octet)
        x.before[i] = times(x.before[i], octet_total);
      else
        x.after[i] = times(x.after[i], octet_total);
    }
    const int column = half * 32 + x.pair * 2;
    if (x.octet) *(two *)(total + w * 64 + column) = x.before[7];

    // Pairs of neighbouring blocks.
    float r1[4][4], r2[4][4];
    const auto put_level = [&](bool is_row, two outer) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < 8; i++)
        x.template put<64>(t, t2, w * 16 + x.octet * 8 + i, column, i, is_row,
                           times(is_row ? x.before[i] : x.after[i], outer),
                           times(i ? x.before[i ? i - 1 : 0] : first, outer));
      clear(r1);
      clear(r2);
      __syncthreads();
    };
    put_level(w & 1, one);
    two all[4];
#pragma unroll
    for (int i = 0; i < 4; i++) all[i] = *(const two *)(total + i * 64 + column);
    add_blocks<RULE, L>(r1, r2, m, w, w ^ 1, w & 1, t, t2, half * 32);
    __syncthreads();
    x.spread_block(r1, r2, w & 1, one, first);

    // Pairs of the chunk's halves.
    const two outer = w == 3 ? all[2] : w == 0 ? all[1] : one;
    put_level(w >= 2, outer);
    add_blocks<RULE, L>(r1, r2, m, w, w >= 2 ? 0 : 2, w >= 2, t, t2, half * 32);
    add_blocks<RULE, L>(r1, r2, m, w, w >= 2 ? 1 : 3, w >= 2, t, t2, half * 32);
    __syncthreads();
    const two far = x.spread_block(r1, r2, w >= 2, outer, first);
    if (x.octet) *(two *)(cross + w * 64 + column) = far;

    // Pairs with the state before and the state after the chunk.
    const auto state_product = [&](float (&r)[4][4], const u16 *left, const u16 *state,
                                   float factor) {
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
#pragma unroll
      for (int n = 0; n < 4; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) r[n][e] *= factor;
    };
    two lead = one, tail = one;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i < w) lead = times(lead, all[i]);
      if (i > w) tail = times(tail, all[i]);
    }
    state_product(r1, m + L::dy, m + L::s, p.scale);
    if (RULE != LINEAR) state_product(r2, m + L::r, m + L::s, RULE == BETA ? -1.0f : 1.0f);
    const two back = x.spread_block(r1, r2, true, lead, first);
    state_product(r1, m + (RULE == BETA ? L::n : L::v), m + L::ds, 1.0f);
    if (RULE == GENERAL) state_product(r2, m + L::n, m + L::ds, 1.0f);
    const two ahead = x.spread_block(r1, r2, false, tail, first);
    if (x.octet) {
      *(two *)(cross + (4 + w) * 64 + column) = back;
      *(two *)(cross + (8 + w) * 64 + column) = ahead;
    }
    __syncthreads();
    // What crosses the whole block: pairs of other blocks, and the state carried through.
    two through = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < 8; i++)
      Adjoint<RULE>::add(through, *(const two *)(carries + i * 64 + column));
    through = times(through, times(times(all[0], all[1]), times(all[2], all[3])));
    const int partner = w == 2 ? 3 : w == 1 ? 0 : -1;
    if (partner >= 0) Adjoint<RULE>::add(through, *(const two *)(cross + partner * 64 + column));
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i > w) Adjoint<RULE>::add(through, *(const two *)(cross + (4 + i) * 64 + column));
      if (i < w) Adjoint<RULE>::add(through, *(const two *)(cross + (8 + i) * 64 + column));
    }

    // Each token with itself, and out.
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int row = w * 16 + x.octet * 8 + i;
      const two query = x.value(x.query(i)), key = x.value(x.key(i));
      const float self = lowest_bits((u32)(m + L::qk)[at<64>(row, row)] << 16);
      Adjoint<RULE>::add(x.dq[i], times(key, {self, self}));
      Adjoint<RULE>::add(x.dk[i], times(query, {self, self}));
      if (RULE == GENERAL) {
        const float writes = lowest_bits((u32)(m + L::qb)[at<64>(row, row)] << 16);
        Adjoint<RULE>::add(x.dq[i], times(x.value(x.write(i)), {writes, writes}));
        Adjoint<RULE>::add(x.db[RULE == GENERAL ? i : 0], times(query, {writes, writes}));
      }
      Adjoint<RULE>::add(x.dg[i], through);
      const long long to = head_row + row * head_stride + channel;
      if (row < rows && channel < p.keys) {
        store_two((E *)p.dq, to, x.dq[i].x, x.dq[i].y);
        store_two((E *)p.dk, to, x.dk[i].x, x.dk[i].y);
        if (RULE == GENERAL) {
          store_two((E *)p.da, to, x.da[RULE == GENERAL ? i : 0].x,
                    x.da[RULE == GENERAL ? i : 0].y);
          store_two((E *)p.db, to, x.db[RULE == GENERAL ? i : 0].x,
                    x.db[RULE == GENERAL ? i : 0].y);
        }
        if (p.gate_kind == 3 && p.d_gate) {
          if (p.gate_is_float)
            store_two((float *)p.d_gate, to, x.dg[i].x, x.dg[i].y);
          else
            store_two((bf16 *)p.d_gate, to, x.dg[i].x, x.dg[i].y);
        }
      }
      if (p.gate_kind == 1 || p.gate_kind == 2) {
        float sum = channel < p.keys ? x.dg[i].x + x.dg[i].y : 0.0f;
#pragma unroll
        for (int s = 1; s < 16; s *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, s);
        if (x.pair == 0) sums[half * 64 + row] += sum;
      }
    }
  }
  if (p.d_gate && (p.gate_kind == 1 || p.gate_kind == 2)) {
    __syncthreads();
    if (threadIdx.x < rows)
      ((float *)p.d_gate)[(token + threadIdx.x) * p.heads + head] =
          sums[threadIdx.x] + sums[64 + threadIdx.x];
  }
}
