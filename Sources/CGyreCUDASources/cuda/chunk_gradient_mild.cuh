// gradient for mild chunks (chunk_mild.cuh) of keys and values up to 64 with decays of channels:
// one level in place of six, all of it where the products' accumulators lie, two blocks a
// multiprocessor.
//
// The gradient of a log decay is a running sum of what rows get minus what columns get. Both sides
// take the same rounded operands, so pairs on one side of a token cancel to float32.
#pragma once
#include "chunk_gradient_layout.cuh"
#include "chunk_mild.cuh"

DEV_CONST int rule_tile(int rule, int general, int beta, int linear) {
  return 4096 * (rule == GENERAL ? general : rule == BETA ? beta : linear);
}

/// Shared memory: tiles of 64×64, in the order of the stages that free them, and floats.
template <int RULE>
struct MildLayout {
  static constexpr int dy = 0, v = 4096, s = 2 * 4096, ds = 3 * 4096;
  static constexpr int b = rule_tile(RULE, 4, 0, 0), qb = rule_tile(RULE, 5, 0, 0);
  static constexpr int t = rule_tile(RULE, 6, 4, 0), w = rule_tile(RULE, 7, 0, 0);
  static constexpr int m = rule_tile(RULE, 8, 0, 0);
  static constexpr int kt = rule_tile(RULE, 9, 0, 4), p = rule_tile(RULE, 10, 0, 5);
  static constexpr int q = rule_tile(RULE, 11, 7, 6), k = rule_tile(RULE, 12, 8, 7);
  static constexpr int z = k;
  // Later; of the delta rule v is what tokens wrote, and r comes from memory.
  static constexpr int n = rule_tile(RULE, 4, 1, 0), r = rule_tile(RULE, 5, 5, 0);
  static constexpr int a = rule_tile(RULE, 6, 4, 0);  // rows that erase
  static constexpr int write = w;                     // columns that write
  static constexpr int qk = rule_tile(RULE, 8, 2, 4), ak = rule_tile(RULE, 10, 6, 0);
  static constexpr int qb2 = rule_tile(RULE, 9, 0, 0), ab = s;
  static constexpr int end = rule_tile(RULE, 13, 9, 8);
  static constexpr int totals = end;                // float [4][64]
  static constexpr int columns = totals + 512;      // float [4][64]
  static constexpr int carry = columns + 512;       // float [8][64]
  static constexpr int strength = carry + 1024;     // float [2][64]
  static constexpr int beta = strength + 256;       // float [64]
  static constexpr int edges = beta + 128;          // float [4][64]
  static constexpr int bytes = (edges + 512) * 2;
};

/// Grid (chunks, B·H), 256 threads; a warp has 16 rows and 8 N columns. Reads what gradient reads; a
/// chunk that is not mild gets 0 in `mild` and nothing else, the others 1 and all gradients.
template <int RULE, typename E>
DEV void mild_gradient(const MixerArgs &p) {
  constexpr int N = 4, THREADS = 1024 / N;
  typedef MildLayout<RULE> L;
  typedef Record<RULE, 64> R;
  SHARED(memory);
  u16 *m = (u16 *)memory;
  float *totals = (float *)(m + L::totals), *columns = (float *)(m + L::columns);
  float *carries = (float *)(m + L::carry), *strengths = (float *)(m + L::strength);
  float *beta = (float *)(m + L::beta), *edges = (float *)(m + L::edges);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, c = (lane & 3) * 2;
  const int w = warp & 3, part = warp >> 2, h0 = part * 8 * N;
  const int chunk = blockIdx.x, batch = blockIdx.y / p.heads, head = blockIdx.y % p.heads;
  const int start = chunk * CHUNK;
  const int key_head = head / (p.heads / p.key_heads);
  const long long place = (long long)blockIdx.y * p.chunks + chunk;
  const u16 *record = (const u16 *)(p.records + place * R::bytes);
  const int rows = p.tokens - start < CHUNK ? p.tokens - start : CHUNK;
  const long long token = (long long)batch * p.tokens + start;
  const long long value_row = (token * p.heads + head) * p.values;
  const int value_stride = p.heads * p.values, key_stride = p.key_heads * p.keys;
  const long long key_row = (token * p.key_heads + key_head) * p.keys;
  const long long head_row = (token * p.heads + head) * p.keys;
  const int head_stride = p.heads * p.keys;

  // Everything on its way, in the order of its use.
  KeptState<64, 64, THREADS> state, state_gradient;
  state_gradient.fetch(p.state_gradients, place, p.values);
  state.fetch(p.states, place, p.values);
  const auto image = [&](int to, const u16 *from) {
    for (int i = threadIdx.x * 8; i < 4096; i += THREADS * 8) copy16(m + to + i, from + i, true);
  };
  const u16 *extra = (const u16 *)(p.extras + place * R::extra);
  load_rows<64>(m + L::dy, (const E *)p.dy, value_row, value_stride, rows, p.values, THREADS);
  if (RULE == GENERAL) {
    image(L::b, record + R::B);
    image(L::t, extra);
    image(L::qb, extra + 2 * 4096);
    copy_commit();
  }
  const auto load_values = [&](int to, const void *from) {
    load_rows<64>(m + to, (const E *)from, value_row, value_stride, rows, p.values, THREADS);
  };
  load_values(L::v, RULE == BETA ? p.written : p.v);
  if (RULE == BETA) {
    load_values(L::r, p.dv);
    image(L::t, extra);
  }
  if (RULE == GENERAL) {
    image(L::w, record + R::W);
    image(L::m, extra + 4096);
    copy_commit();
  }
  if (RULE != BETA) {
    image(L::kt, record + R::KT);
    image(L::p, record + R::P);
  }
  load_rows<64>(m + L::q, (const E *)p.q, key_row, key_stride, rows, p.keys, THREADS);
  const auto load_keys = [&] {
    load_rows<64>(m + L::k, (const E *)p.k, key_row, key_stride, rows, p.keys, THREADS);
  };
  if (RULE != GENERAL) load_keys();
  copy_commit();
  MildDecays<N> decays;
  decays.load(p, batch, head, start + w * 16, h0, totals + w * 64);
  if (RULE == BETA && threadIdx.x < CHUNK) {
    float x = 0.0f;
    if ((int)threadIdx.x < rows)
      x = load_any(p.beta, p.beta_is_float, (token + threadIdx.x) * p.heads + head);
    beta[threadIdx.x] = x < 1e-18f && x > -1e-18f ? 1e-18f : x;
  }
  state.put(m + L::s);
  state_gradient.put(m + L::ds);
  if (RULE == GENERAL)
    copy_wait<2>();
  else
    copy_wait<0>();
  __syncthreads();
  const bool does = is_mild(p, totals, batch, start);
  if (threadIdx.x == 0) p.mild[place] = does;
  if (!does) {
    copy_wait<0>();
    return;
  }
  decays.place(totals, w, h0, true);

  // N, dV, R: rows of block w, the warp's columns.
  float x[N][4];
  const auto times_tile = [&](float (&d)[N][4], const u32(&a)[4], const u16 *tile, int row) {
#pragma unroll
    for (int n = 0; n < N / 2; n++) {
      u32 b[4];
      load_b_t<64>(b, tile, h0 + n * 16, row);
      mma(d[n * 2], a, b[0], b[1]);
      mma(d[n * 2 + 1], a, b[2], b[3]);
    }
  };
  const auto with_state = [&](float (&d)[N][4], const u16 *keys, const u16 *state) {
#pragma unroll
    for (int s = 0; s < 4; s++) {
      u32 a[4];
      load_a<64>(a, keys, w * 16, s * 16);
#pragma unroll
      for (int n = 0; n < N / 2; n++) {
        u32 b[4];
        load_b<64>(b, state, h0 + n * 16, s * 16);
        mma(d[n * 2], a, b[0], b[1]);
        mma(d[n * 2 + 1], a, b[2], b[3]);
      }
    }
  };
  // d += columns w of the tile `left`, from row w on, transposed, times `right`.
  const auto with_later = [&](float (&d)[N][4], const u16 *left, const u16 *right) {
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (j >= w) {
        u32 a[4];
        load_a_t<64>(a, left, w * 16, j * 16);
        times_tile(d, a, right, j * 16);
      }
  };
  if (RULE == GENERAL) {
    clear(x);
    with_state(x, m + L::b, m + L::ds);
    with_later(x, m + L::qb, m + L::dy);
    store_tile<64>(m + L::z, w * 16, h0, x);
    copy_wait<1>();
    __syncthreads();
    clear(x);
    with_later(x, m + L::t, m + L::z);
    store_tile<64>(m + L::r, w * 16, h0, x);
  }
  float dv[N][4];
  const auto values = [&] {
    clear(dv);
    with_state(dv, m + L::kt, m + L::ds);
    with_later(dv, m + L::p, m + L::dy);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = w * 16 + g + h * 8;
#pragma unroll
      for (int n = 0; n < N; n++) {
        const int column = h0 + n * 8 + c;
        if (row < rows && column < p.values)
          store_two((E *)p.dv, value_row + row * value_stride + column, dv[n][h * 2],
                    dv[n][h * 2 + 1]);
      }
    }
  };
  if (RULE != LINEAR) {
    clear(x);
    if (RULE == GENERAL) with_state(x, m + L::w, m + L::s);
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (j <= w) {
        u32 a[4];
        load_a<64>(a, m + (RULE == BETA ? L::t : L::m), w * 16, j * 16);
        if (RULE == BETA) {
          // Columns of T times β.
          const two low = *(const two *)(beta + j * 16 + c);
          const two high = *(const two *)(beta + j * 16 + c + 8);
          a[0] = scaled(a[0], low);
          a[1] = scaled(a[1], low);
          a[2] = scaled(a[2], high);
          a[3] = scaled(a[3], high);
        }
        times_tile(x, a, m + L::v, j * 16);
      }
    if (RULE == BETA) __syncthreads();  // N takes the place of what tokens wrote
    store_tile<64>(m + L::n, w * 16, h0, x);
  }
  if (RULE == BETA) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < N; n++) {
        const u32 r = *(const u32 *)(m + L::r + at<64>(w * 16 + g + h * 8, h0 + n * 8 + c));
        sum += low_of(r) * x[n][h * 2] + high_of(r) * x[n][h * 2 + 1];
      }
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if ((lane & 3) == 0) strengths[part * 64 + w * 16 + g + h * 8] = sum;
    }
  }
  copy_wait<0>();
  __syncthreads();
  if (RULE == GENERAL) {
    load_keys();
    load_rows<64>(m + L::a, (const E *)p.a, head_row, head_stride, rows, p.keys, THREADS);
    load_rows<64>(m + L::write, (const E *)p.b, head_row, head_stride, rows, p.keys, THREADS);
    copy_commit();
  }
  if (RULE == BETA && threadIdx.x < rows && p.d_beta) {
    const float y = beta[threadIdx.x];
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8 / N; i++) sum += strengths[i * 64 + threadIdx.x];
    p.d_beta[(token + threadIdx.x) * p.heads + head] = sum / y / y;
  }
  if (RULE != BETA) values();

  // ⟨S, dS⟩ of each channel, a share a warp.
  {
    two sum = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < 2 * N; i++) {
      const int at_state = at<64>(warp + i * (32 / N), lane * 2);
      const u32 s = *(const u32 *)(m + L::s + at_state), d = *(const u32 *)(m + L::ds + at_state);
      sum.x += low_of(s) * low_of(d);
      sum.y += high_of(s) * high_of(d);
    }
    *(two *)(carries + warp * 64 + lane * 2) = sum;
  }

  if (RULE == GENERAL) {
    copy_wait<0>();
    __syncthreads();
  }

  // Rows and columns from the middle, each in the place of its raw values.
  float lengths[2][2] = {{1.0f, 1.0f}, {1.0f, 1.0f}};
  if (p.normalize)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      lengths[0][h] = p.norms[place * 128 + w * 16 + g + h * 8];
      lengths[1][h] = p.norms[place * 128 + 64 + w * 16 + g + h * 8];
    }
#pragma unroll
  for (int n = 0; n < N; n++) {
    float own[4];
    if (RULE == GENERAL)
      MildDecays<N>::own(own, p, batch, head, start + w * 16, h0 + n * 8);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int to = at<64>(w * 16 + g + h * 8, h0 + n * 8 + c);
      const float c0 = decays.c[n][h * 2], c1 = decays.c[n][h * 2 + 1];
      const two row = {exp2_of(c0), exp2_of(c1)}, column = {exp2_of(-c0), exp2_of(-c1)};
      const two unit_q = {lengths[0][h], lengths[0][h]}, unit_k = {lengths[1][h], lengths[1][h]};
      u32 *q = (u32 *)(m + L::q + to), *k = (u32 *)(m + L::k + to);
      *q = scaled(*q, times(row, unit_q));
      const u32 key = *k;
      *k = scaled(key, times(column, unit_k));
      if (RULE == BETA) *(u32 *)(m + L::a + to) = scaled(key, times(row, unit_k));
      if (RULE == GENERAL) {
        u32 *a = (u32 *)(m + L::a + to), *b = (u32 *)(m + L::write + to);
        *a = scaled(*a, {exp2_of(c0 - own[h * 2]), exp2_of(c1 - own[h * 2 + 1])});
        *b = scaled(*b, column);
      }
    }
  }

  // Pairs with the state before the chunk: what rows get of it, from the chunk's middle.
  float dq[N][4], da[N][4];
  clear(dq);
  clear(da);
#pragma unroll
  for (int s = 0; s < 4; s++) {
    u32 a[4], a2[4], b[4];
    load_a<64>(a, m + L::dy, w * 16, s * 16);
    if (RULE != LINEAR) load_a<64>(a2, m + L::r, w * 16, s * 16);
#pragma unroll
    for (int n = 0; n < N / 2; n++) {
      load_b_t<64>(b, m + L::s, h0 + n * 16, s * 16);
      mma(dq[n * 2], a, b[0], b[1]);
      mma(dq[n * 2 + 1], a, b[2], b[3]);
      if (RULE != LINEAR) {
        mma(da[n * 2], a2, b[0], b[1]);
        mma(da[n * 2 + 1], a2, b[2], b[3]);
      }
    }
  }
  // e^m of a channel, and e^{C − m}.
  const auto lead = [&](int column) {
    const float *x = totals + column;
    return exp2_of(x[0] + x[64]);
  };
  const auto tail = [&](int column) {
    const float *x = totals + column;
    return exp2_of(x[128] + x[192]);
  };
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const float f = lead(h0 + n * 8 + c + e);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        dq[n][h * 2 + e] *= f * p.scale;
        da[n][h * 2 + e] *= RULE == BETA ? -f : f;
      }
    }
  __syncthreads();

  // Gradients of the masked products; warp (w, part) makes N / 2 blocks of 16 columns.
  constexpr int grams = RULE == LINEAR ? 1 : RULE == BETA ? 2 : 4;
#pragma unroll 1
  for (int block = part * N / 2; block < (part + 1) * N / 2 && block <= w; block++) {
    float d[grams][2][4];
#pragma unroll
    for (int i = 0; i < grams; i++) clear(d[i]);
#pragma unroll
    for (int s = 0; s < 4; s++) {
      const auto product = [&](int i, const u32(&a)[4], const u32(&b)[4]) {
        mma(d[i < grams ? i : 0][0], a, b[0], b[1]);
        mma(d[i < grams ? i : 0][1], a, b[2], b[3]);
      };
      u32 a[4], b[4];
      load_a<64>(a, m + L::dy, w * 16, s * 16);
      load_b<64>(b, m + (RULE == BETA ? L::n : L::v), block * 16, s * 16);
      product(0, a, b);
      if (RULE == LINEAR) continue;
      u32 a2[4], b2[4];
      load_a<64>(a2, m + L::r, w * 16, s * 16);
      product(1, a2, b);
      if (RULE == BETA) continue;
      load_b<64>(b2, m + L::n, block * 16, s * 16);
      product(2, a, b2);
      product(3, a2, b2);
    }
#pragma unroll
    for (int i = 0; i < grams; i++) {
      const bool is_strict = i == 1 || i == 3;
      const float factor = !is_strict ? p.scale : RULE == BETA ? -1.0f : 1.0f;
#pragma unroll
      for (int n = 0; n < 2; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const int row = w * 16 + g + (e >> 1) * 8, column = block * 16 + n * 8 + c + (e & 1);
          d[i][n][e] = column < row || (column == row && !is_strict) ? d[i][n][e] * factor : 0.0f;
        }
      store_tile<64>(m + (i == 0 ? L::qk : i == 1 ? L::ak : i == 2 ? L::qb2 : L::ab), w * 16,
                     block * 16, d[i]);
    }
  }
  __syncthreads();

  // Rows.
#pragma unroll
  for (int j = 0; j < 4; j++)
    if (j <= w) {
      u32 a[4];
      const auto add = [&](float (&d)[N][4], int left, int right) {
        load_a<64>(a, m + left, w * 16, j * 16);
        times_tile(d, a, m + right, j * 16);
      };
      add(dq, L::qk, L::k);
      if (RULE != LINEAR) add(da, L::ak, L::k);
      if (RULE == GENERAL) {
        add(dq, L::qb2, L::write);
        add(da, L::ab, L::write);
      }
    }
  float dc[N][4];
  const auto out = [&](void *to, int n, int h, float x0, float x1) {
    const int row = w * 16 + g + h * 8, channel = h0 + n * 8 + c;
    if (row < rows && channel < p.keys)
      store_two((E *)to, head_row + row * head_stride + channel, x0, x1);
  };
#pragma unroll
  for (int n = 0; n < N; n++) {
    float own[4], past[4];
    if (RULE == GENERAL)
      MildDecays<N>::own(own, p, batch, head, start + w * 16, h0 + n * 8);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int from = at<64>(w * 16 + g + h * 8, h0 + n * 8 + c);
      const u32 query = *(const u32 *)(m + L::q + from);
      const float c0 = decays.c[n][h * 2], c1 = decays.c[n][h * 2 + 1];
      float x0 = dq[n][h * 2], x1 = dq[n][h * 2 + 1];
      const float f0 = exp2_of(c0), f1 = exp2_of(c1);
      dc[n][h * 2] = low_of(query) * x0;
      dc[n][h * 2 + 1] = high_of(query) * x1;
      out(p.dq, n, h, x0 * f0, x1 * f1);
      if (RULE == LINEAR) continue;
      const u32 erase = *(const u32 *)(m + L::a + from);
      x0 = da[n][h * 2];
      x1 = da[n][h * 2 + 1];
      if (RULE == BETA) {
        dc[n][h * 2] += low_of(erase) * x0;
        dc[n][h * 2 + 1] += high_of(erase) * x1;
        da[n][h * 2] = x0 * f0;
        da[n][h * 2 + 1] = x1 * f1;
      } else {
        past[h * 2] = low_of(erase) * x0;
        past[h * 2 + 1] = high_of(erase) * x1;
        out(p.da, n, h, x0 * exp2_of(c0 - own[h * 2]), x1 * exp2_of(c1 - own[h * 2 + 1]));
      }
    }
    if (RULE == GENERAL) {
      // What a row erases crosses only the tokens before it: to the row or the block above.
      if (g == 0) *(two *)(edges + w * 64 + h0 + n * 8 + c) = {past[0], past[1]};
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const float later = __shfl_sync(0xffffffffu, past[e + 2], lane & 3);
        const float low = __shfl_down_sync(0xffffffffu, past[e], 4);
        const float high = __shfl_down_sync(0xffffffffu, past[e + 2], 4);
        dc[n][e] += g == 7 ? later : low;
        dc[n][e + 2] += g == 7 ? 0.0f : high;
      }
    }
  }

  // Columns: pairs with the state after the chunk, then later rows.
  float dk[N][4], db[RULE == GENERAL ? N : 1][4];
  clear(dk);
  clear(db);
#pragma unroll
  for (int s = 0; s < 4; s++) {
    u32 a[4], a2[4], b[4];
    load_a<64>(a, m + (RULE == BETA ? L::n : L::v), w * 16, s * 16);
    if (RULE == GENERAL) load_a<64>(a2, m + L::n, w * 16, s * 16);
#pragma unroll
    for (int n = 0; n < N / 2; n++) {
      load_b_t<64>(b, m + L::ds, h0 + n * 16, s * 16);
      mma(dk[n * 2], a, b[0], b[1]);
      mma(dk[n * 2 + 1], a, b[2], b[3]);
      if (RULE == GENERAL) {
        mma(db[RULE == GENERAL ? n * 2 : 0], a2, b[0], b[1]);
        mma(db[RULE == GENERAL ? n * 2 + 1 : 0], a2, b[2], b[3]);
      }
    }
  }
#pragma unroll
  for (int n = 0; n < N; n++) {
    two share = {0.0f, 0.0f};
    const two f = {tail(h0 + n * 8 + c), tail(h0 + n * 8 + c + 1)};
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int from = at<64>(w * 16 + g + h * 8, h0 + n * 8 + c);
      const u32 key = *(const u32 *)(m + L::k + from);
      dk[n][h * 2] *= f.x;
      dk[n][h * 2 + 1] *= f.y;
      share.x += low_of(key) * dk[n][h * 2];
      share.y += high_of(key) * dk[n][h * 2 + 1];
      if (RULE == GENERAL) {
        const u32 write = *(const u32 *)(m + L::write + from);
        float (&d)[4] = db[RULE == GENERAL ? n : 0];
        d[h * 2] *= f.x;
        d[h * 2 + 1] *= f.y;
        share.x += low_of(write) * d[h * 2];
        share.y += high_of(write) * d[h * 2 + 1];
      }
    }
#pragma unroll
    for (int s = 4; s < 32; s *= 2) {
      share.x += __shfl_xor_sync(0xffffffffu, share.x, s);
      share.y += __shfl_xor_sync(0xffffffffu, share.y, s);
    }
    if (g == 0) *(two *)(columns + w * 64 + h0 + n * 8 + c) = share;
  }
#pragma unroll
  for (int j = 0; j < 4; j++)
    if (j >= w) {
      u32 a[4];
      const auto add = [&](float (&d)[N][4], int left, int right) {
        load_a_t<64>(a, m + left, w * 16, j * 16);
        times_tile(d, a, m + right, j * 16);
      };
      add(dk, L::qk, L::q);
      if (RULE != LINEAR) add(dk, L::ak, L::a);
      if constexpr (RULE == GENERAL) {
        add(db, L::qb2, L::q);
        add(db, L::ab, L::a);
      }
    }
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int from = at<64>(w * 16 + g + h * 8, h0 + n * 8 + c);
      const u32 key = *(const u32 *)(m + L::k + from);
      const float f0 = exp2_of(-decays.c[n][h * 2]), f1 = exp2_of(-decays.c[n][h * 2 + 1]);
      const float x0 = dk[n][h * 2], x1 = dk[n][h * 2 + 1];
      dc[n][h * 2] -= low_of(key) * x0;
      dc[n][h * 2 + 1] -= high_of(key) * x1;
      const bool adds = RULE == BETA;
      out(p.dk, n, h, x0 * f0 + (adds ? da[n][h * 2] : 0.0f),
          x1 * f1 + (adds ? da[n][h * 2 + 1] : 0.0f));
      if (RULE == GENERAL) {
        const u32 write = *(const u32 *)(m + L::write + from);
        const float y0 = db[RULE == GENERAL ? n : 0][h * 2],
                    y1 = db[RULE == GENERAL ? n : 0][h * 2 + 1];
        dc[n][h * 2] -= low_of(write) * y0;
        dc[n][h * 2 + 1] -= high_of(write) * y1;
        out(p.db, n, h, y0 * f0, y1 * f1);
      }
    }

  // Log decays: sums to the end, all columns' pairs with the later state, and the state carried.
  if (!p.d_gate) return;
  float all[N][2];
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const int column = h0 + n * 8 + c + e;
      float carried = 0.0f;
#pragma unroll
      for (int i = 0; i < 32 / N; i++) carried += carries[i * 64 + column];
      all[n][e] = carried * lead(column) * tail(column);
    }
  __syncthreads();
  sum_to_end(dc, totals + w * 64, h0);
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const int column = h0 + n * 8 + c + e;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        all[n][e] += columns[i * 64 + column];
        if (i > w) all[n][e] += totals[i * 64 + column];
        if (RULE == GENERAL && i > w) all[n][e] += edges[i * 64 + column];
      }
    }
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int row = w * 16 + g + h * 8, channel = h0 + n * 8 + c;
      const float x0 = dc[n][h * 2] + all[n][0], x1 = dc[n][h * 2 + 1] + all[n][1];
      if (row >= rows || channel >= p.keys) continue;
      const long long to = head_row + row * head_stride + channel;
      if (p.gate_is_float)
        store_two((float *)p.d_gate, to, x0, x1);
      else
        store_two((bf16 *)p.d_gate, to, x0, x1);
    }
}
