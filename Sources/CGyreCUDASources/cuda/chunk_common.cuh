// The chunkwise form of every matrix-state recurrence, in four kernels.
//
// With a chunk's 64 tokens as rows and S the [K, V] state entering it, linear attention, the delta
// rule with or without gates and the generalised (diagonal plus low rank) rule take the shape
//
//     linear attention   O = Q̃ S + P̃ V                  S' = diag(d) S + K̃ᵀ V
//     delta rule         O = Q̄ S + P̃ Y   Y = V + W S    S' = diag(d) S + K̃ᵀ Y          W = −K̄
//     generalised rule   O = Q̃ S + P̃ V   Y = W S        S' = diag(d) S + K̃ᵀ V + B̂ᵀ Y
//
// Gates, β and the triangular solve are folded into the tiles, so:
//
//   prepare    one block a chunk and head: q, k, gates … → the record [P̃ | K̃ | W | Q̃ | B̂ | d], without
//              W, B̂ of linear attention, without B̂ of the delta rule
//   walk       one warp owns 16 value columns of a head's state and walks its records: y, final
//              state, and the state entering each chunk and Y of the delta rule where these are given
//   walk_back  the mirror image, from the last chunk to the first, keeps dS of each chunk and gives dS
//              of the initial:
//              delta rule         dV = P̃ᵀ dO + K̃ dS    dS ← diag(d) dS + Q̄ᵀ dO + Wᵀ dV
//              generalised rule   X = B̂ dS             dS ← diag(d) dS + Q̃ᵀ dO + Wᵀ X
//   gradient   one block a chunk and head: all other gradients from the kept S and dS
//
// Decays are products of factors in [0, 1] (a reset is a factor 0), never of an exponential of a
// positive number: e^{c_i − c_j} is split at the edge between the halves of the smallest aligned
// group of 2, 4, … 64 tokens that holds both, and each level of that hierarchy is one product of
// matrices. So closed gates, −∞ included, and resets are exact.
//
// Matrix products take bf16 operands and float32 accumulators; the states, decays, the inverse of
// the 16-row diagonal blocks and all reductions are float32. No atomics: results repeat bit for
// bit.
#pragma once
#include "mma.cuh"

/// What divides the outputs: y = o / d, d = max(|a|, bound) + ε or a + ε, a = s z·q, z ← D z + w k,
/// with w = 1 or e^(ĩ − m) (chunk_normalizer.cuh). KP: K rounded up to the kernel's.
struct NormalizerArgs {
  const void *input_gate;       // ĩ [B, T, H] or null
  const float *initial_max;     // [B, H] or null: 0
  float *final_max;             // [B, H] or null
  float *stabilizers;           // [B·H, N + 1, 2] or null: log2 m entering each chunk, and scratch
  float *row_sums;              // [B·H, N, 2, 64] or null: rows of P̃, and e^−m
  float *key_sums;              // [B·H, N, KP]: columns of K̃
  const float *initial_vector;  // [B, H, K] or null: z before the first token
  float *final_vector;          // [B, H, K] or null
  float *vectors;               // [B·H, N, KP] or null: z entering the chunks
  float *amounts;               // [B, T, H] or null: a
  void *dn;                     // T [B, T, H, V]: dy / d, for walk_back and gradient
  float *d_amounts;             // [B, T, H] or null
  float *query_sums;            // [B·H, N, KP]: Q̃ᵀ da
  float *vector_gradients;      // [B·H, N, KP]: gradients of the z that leave the chunks
  const float *d_final_vector;  // [B, H, K] or null: zeros
  float *d_initial_vector;      // [B, H, K] or null
  float *d_input;               // [B, T, H] or null
  int input_is_float;           // the input gate's type: 1 float32, 0 bf16
  int divisor;                  // 0: none, 1: a + ε, 2: max(|a|, floor) + ε, 3: max(|a|, e^−m) + ε
  float floor, epsilon;
};

/// Arguments of all four kernels; a kernel reads what its comment names. T is the kernel's element
/// type. Letters: B batch, T tokens, H heads, Hk key heads (head h reads key head h / (H / Hk)), K,
/// V sizes of keys and values (multiples of 8), N = ⌈T / 64⌉ chunks.
struct MixerArgs {
  const void *q, *k;     // T [B, T, Hk, K]
  const void *v;         // T [B, T, H, V]
  const void *a, *b;     // T [B, T, H, K], erase and write vectors of the generalised rule
  const void *gate;      // log decay ≤ 0, −∞ allowed; shape by gate_kind
  const void *beta;      // [B, T, H], write strength of the delta rule
  const int *reset;      // [B, T] or null; nonzero: the state is zero before the token
  const float *initial;  // [B, H, K, V] or null: the state before the first token
  void *y;               // T [B, T, H, V]
  float *final;          // [B, H, K, V] or null
  unsigned char
      *records;  // workspace, B·H·N records of RECORD bytes (see LAUNCH.md), 128-byte aligned
  unsigned char
      *extras;   // workspace, B·H·N of EXTRA bytes, or null: written by prepare for gradient
  void *states;  // bf16 [B, H, N, V/16, K/16, 32, 8] or null: states entering the chunks
  void *written;  // T [B, T, H, V] or null, the delta rule only: Y = V − K̄ S, by walk for gradient
  void *state_gradients;  // the same shape: gradients of the states that leave the chunks
  const void *dy;         // T [B, T, H, V]
  const float *d_final;   // [B, H, K, V] or null: zeros
  void *dq, *dk;          // T [B, T, H, K]: per value head, the caller sums the heads of a group
  void *dv;               // T [B, T, H, V]; of the delta rule by walk_back, for gradient too
  void *da, *db;          // T [B, T, H, K]
  void *d_gate;  // [B, T, H, K] in the gate's type; float [B, T, H] for gate kinds 1 and 2; or null
  float *d_beta;     // [B, T, H]
  float *d_initial;  // [B, H, K, V] or null
  float *norms;      // [B·H, N, 2, 64] or null: 1 / length of the rows of q and k, by prepare
  int *mild;         // [B·H, N] or null: 1 where the mild kernel has done a chunk (chunk_mild.cuh)
  int batch, tokens, heads, key_heads, keys, values;
  int chunks;         // N
  int gate_kind;      // 0: none, 1: [H], 2: [B, T, H], 3: [B, T, H, K]
  int gate_is_float;  // the gate's type: 1 float32, 0 bf16
  int beta_is_float;  // likewise
  float scale;        // s, multiplies the outputs
  int normalize;      // 1: q and k are divided by √(Σ² + 1e-6); dq, dk are those of the results
  NormalizerArgs n;   // linear attention with gate kinds 0 to 2
};

#ifndef GYRE_KEYS
#define GYRE_KEYS 64
#endif
#ifdef GYRE_FLOAT
#define MIXER_ENTRIES(M, K) M(float, float, K)
#else
#define MIXER_ENTRIES(M, K) M(bf16, bf16, K)
#endif
#define MIXER_SIZE(M, K) MIXER_ENTRIES(M, K)
#define MIXER_MODULE(M) MIXER_SIZE(M, GYRE_KEYS)

enum { LINEAR = 0, BETA = 1, GENERAL = 2 };
enum { CHUNK = 64 };

/// Offsets in a record, in 16-bit elements; K is the key size rounded up to the kernel's.
template <int RULE, int K>
struct Record {
  static constexpr int P = 0, KT = 4096;
  static constexpr int W = KT + 64 * K;
  static constexpr int Q = RULE == LINEAR ? W : W + 64 * K;
  static constexpr int B = Q + 64 * K;
  static constexpr int D = RULE == GENERAL ? B + 64 * K : B;
  // Two factors a row, float [2][64]: what K̄ and Q̄ are of the rows of k and q, where one decay serves all channels.
  static constexpr int F = D + K * 2;
  static constexpr int bytes = F * 2 + (RULE == BETA ? 512 : 0);
  static constexpr int extra = RULE == LINEAR ? 0 : RULE == BETA ? 8192 : 3 * 8192;
};

/// Fills a [64, W] tile with rows of `from`, columns < `width`; zeros elsewhere. Element (row,
/// column) is at from[offset + row * stride + column]. bf16 rows arrive asynchronously.
template <int W>
DEV void load_rows(u16 *tile, const bf16 *from, long long offset, long long stride, int rows,
                   int width, int threads) {
  for (int i = threadIdx.x; i < 64 * (W / 8); i += threads) {
    const int row = i / (W / 8), column = i % (W / 8) * 8;
    const bool present = row < rows && column < width;
    copy16(tile + at<W>(row, column), from + (present ? offset + row * stride + column : 0),
           present);
  }
}
template <int W>
DEV void load_rows(u16 *tile, const float *from, long long offset, long long stride, int rows,
                   int width, int threads) {
  for (int i = threadIdx.x; i < 64 * (W / 2); i += threads) {
    const int row = i / (W / 2), column = i % (W / 2) * 2;
    const bool present = row < rows && column < width;
    *(u32 *)(tile + at<W>(row, column)) =
        present ? load_packed(from, offset + row * stride + column) : 0;
  }
}

/// The factors of the chunk's 64 tokens for gates without channels, into shared memory.
DEV void load_scalar_decays(float *to, const MixerArgs &p, int batch, int head, int start) {
  const int t = start + threadIdx.x;
  if (threadIdx.x >= CHUNK) return;
  float g = 0.0f;
  if (p.gate_kind == 1) g = load_any(p.gate, p.gate_is_float, head);
  if (p.gate_kind == 2 && t < p.tokens)
    g = load_any(p.gate, p.gate_is_float, ((long long)batch * p.tokens + t) * p.heads + head);
  to[threadIdx.x] = t < p.tokens ? exp2_of(g * 1.4426950408889634f) : 1.0f;
}

/// The decays of consecutive tokens for two channels, as factors: 0 at resets (bits from the
/// first), 1 past the end. `scalar` holds load_scalar_decays' for these tokens.
template <int COUNT>
DEV void load_decays(two (&f)[COUNT], const MixerArgs &p, int batch, int head, int first,
                     int channel, u32 resets, const float *scalar) {
  const float log2e = 1.4426950408889634f;
  if (p.gate_kind != 3) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) f[i].x = f[i].y = scalar[i];
  } else {
    // All loads go out before the first is used: places past the end repeat the last.
    const int last = p.tokens - 1, column = channel < p.keys ? channel : 0;
    const long long stride = (long long)p.heads * p.keys;
    const long long base = ((long long)batch * p.tokens * p.heads + head) * p.keys + column;
    if (p.gate_is_float) {
#pragma unroll
      for (int i = 0; i < COUNT; i++)
        f[i] =
            load_two((const float *)p.gate, base + (first + i < last ? first + i : last) * stride);
    } else {
      u32 raw[COUNT];
#pragma unroll
      for (int i = 0; i < COUNT; i++)
        raw[i] = load_packed((const bf16 *)p.gate,
                             base + (first + i < last ? first + i : last) * stride);
#pragma unroll
      for (int i = 0; i < COUNT; i++) f[i] = {low_of(raw[i]), high_of(raw[i])};
    }
    const bool is_channel = channel < p.keys;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const bool is_open = !is_channel || first + i >= p.tokens;
      f[i].x = is_open ? 1.0f : exp2_of(f[i].x * log2e);
      f[i].y = is_open ? 1.0f : exp2_of(f[i].y * log2e);
    }
  }
  if (resets)
#pragma unroll
    for (int i = 0; i < COUNT; i++)
      if (resets >> i & 1) f[i].x = f[i].y = 0.0f;
}

/// Which of 16 tokens have a reset, as bits.
DEV u32 load_resets(const MixerArgs &p, int batch, int first) {
  u32 bits = 0;
  if (p.reset) {
#pragma unroll
    for (int i = 0; i < 16; i++) {
      const int t = first + i < p.tokens ? first + i : p.tokens - 1;
      if (p.reset[(long long)batch * p.tokens + t] && first + i < p.tokens) bits |= 1u << i;
    }
  }
  return bits;
}

DEV two times(two a, two b) {
  return {a.x * b.x, a.y * b.y};
}
DEV u32 scaled(u32 v, two f) {
  return pack2(low_of(v) * f.x, high_of(v) * f.y);
}

/// From products over aligned groups of L tokens to groups of 2L. before[i]: from the group's start
/// through i; after[i]: past i to the group's end.
template <int L>
DEV void widen(two (&before)[16], two (&after)[16]) {
  two total[16 / L];
#pragma unroll
  for (int group = 0; group < 16 / L; group++) total[group] = before[group * L + L - 1];
#pragma unroll
  for (int i = 0; i < 16; i++) {
    if (i & L)
      before[i] = times(before[i], total[i / L - 1]);
    else
      after[i] = times(after[i], total[i / L + 1]);
  }
}

/// Whether the pair (i, j), j before i, has its halves of a group of 2L tokens.
template <int L>
DEV bool is_level(int i, int j) {
  return i > j && (i ^ j) >= L && (i ^ j) < 2 * L;
}

DEV float larger(float a, float b) {
  return a > b ? a : b;
}

/// The scalar gates of two tokens a lane, in log2, and what they make of the stabiliser:
/// m ← max(m + rise, top), through each token from the chunk's start.
struct GatePair {
  u32 bits[2], input_bits[2];  // on their way
  int resets[2];
  float decay[2], shut[2], input[2], rise[2], top[2];

  DEV_MEMBER void fetch(const MixerArgs &p, int batch, int head, int start) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int t = start + (threadIdx.x & 31) * 2 + i, last = t < p.tokens ? t : p.tokens - 1;
      const long long row = (long long)batch * p.tokens + last, at = row * p.heads + head;
      bits[i] = p.gate_kind ? load_bits(p.gate, p.gate_is_float, p.gate_kind == 1 ? head : at) : 0;
      input_bits[i] = p.n.input_gate ? load_bits(p.n.input_gate, p.n.input_is_float, at) : 0;
      resets[i] = p.reset ? p.reset[row] : 0;
    }
  }
  /// After fetch.
  DEV_MEMBER void open(const MixerArgs &p, int start) {
    const float none = -1e30f, log2e = 1.4426950408889634f;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      decay[i] = shut[i] = rise[i] = 0.0f;
      input[i] = p.n.input_gate ? none : 0.0f;
      top[i] = none;
      if (start + (int)(threadIdx.x & 31) * 2 + i >= p.tokens) continue;
      if (p.gate_kind) decay[i] = number(bits[i], p.gate_is_float) * log2e;
      if (p.n.input_gate) {
        input[i] = number(input_bits[i], p.n.input_is_float) * log2e;
        // A new document starts from m = 0.
        top[i] = resets[i] ? larger(decay[i], input[i]) : input[i];
      }
      rise[i] = decay[i];
      if (decay[i] < -1e30f || resets[i]) {
        rise[i] = none;
        decay[i] = 0.0f;
        shut[i] = 1.0f;
      }
    }
  }
  /// Makes rise and top those of all tokens from the chunk's start.
  DEV_MEMBER void scan_stabilizer() {
    const int lane = threadIdx.x & 31;
    top[1] = larger(top[0] + rise[1], top[1]);
    rise[1] += rise[0];
    float r = rise[1], m = top[1];
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const float r_before = __shfl_up_sync(0xffffffffu, r, d),
                  m_before = __shfl_up_sync(0xffffffffu, m, d);
      if (lane >= d) {
        m = larger(m_before + r, m);
        r += r_before;
      }
    }
    const float r_before = __shfl_up_sync(0xffffffffu, r, 1),
                m_before = __shfl_up_sync(0xffffffffu, m, 1);
    if (lane) {
      top[0] = larger(m_before + rise[0], top[0]);
      rise[0] += r_before;
    }
    rise[1] = r;
    top[1] = m;
  }
};

/// What a chunk's tokens have decayed by where one factor serves all channels: the running sum of
/// log2 decays and the number of closed tokens (resets, decays of 0) so far, which no pair may
/// cross. Input gates and stabilisers count as decays: e^(c_i − m_i − c_j + ĩ_j) ≤ 1.
struct ScalarDecays {
  float row[64], column[64], closed[64];
  float lead[64], tail[64];  // from the chunk's start through a token; after it to the chunk's end

  /// One warp, which has fetched `x`; all must wait for it. `begin`: m entering the chunk, in log2; `m`
  /// becomes that of a lane's two tokens. Gives the log2 of the chunk's decay.
  DEV_MEMBER float fill(const MixerArgs &p, GatePair &x, int start, float begin, float (&m)[2]) {
    const int lane = threadIdx.x & 31;
    m[0] = m[1] = 0.0f;
    x.open(p, start);
    if (p.n.input_gate) {
      x.scan_stabilizer();
#pragma unroll
      for (int i = 0; i < 2; i++) m[i] = larger(begin + x.rise[i], x.top[i]);
    }
    float s = x.decay[0] + x.decay[1], n = x.shut[0] + x.shut[1];
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const float s_before = __shfl_up_sync(0xffffffffu, s, d),
                  n_before = __shfl_up_sync(0xffffffffu, n, d);
      if (lane >= d) {
        s += s_before;
        n += n_before;
      }
    }
    const float fall = __shfl_sync(0xffffffffu, s, 31), all_shut = __shfl_sync(0xffffffffu, n, 31);
    const float all = fall - __shfl_sync(0xffffffffu, m[1], 31);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float c = i ? s : s - x.decay[1], shut = i ? n : n - x.shut[1];
      const float from = c - m[i], to = c - x.input[i], to_end = all - to;
      row[lane * 2 + i] = from;
      column[lane * 2 + i] = to;
      closed[lane * 2 + i] = shut;
      lead[lane * 2 + i] =
          shut == 0.0f ? exp2_of(from + begin < 0.0f ? from + begin : 0.0f) : 0.0f;
      tail[lane * 2 + i] = shut == all_shut ? exp2_of(to_end < 0.0f ? to_end : 0.0f) : 0.0f;
    }
    return all_shut > 0.0f ? -1e30f : fall;
  }
  /// The same with what `stabilize` left; keeps e^−m for the walk.
  DEV_MEMBER void fill(const MixerArgs &p, GatePair &x, int batch, int head, int start) {
    const int lane = threadIdx.x & 31;
    const long long row = (long long)batch * p.heads + head;
    float m[2];
    fill(p, x, start, p.n.input_gate ? p.n.stabilizers[(row * (p.chunks + 1) + start / CHUNK) * 2] : 0.0f,
         m);
    if (p.n.row_sums && !p.n.d_amounts)
#pragma unroll
      for (int i = 0; i < 2; i++)
        p.n.row_sums[(row * p.chunks + start / CHUNK) * 128 + 64 + lane * 2 + i] = exp2_of(-m[i]);
  }
  /// The decay from token j through token i ≥ j.
  DEV_MEMBER float between(int i, int j) const {
    const float d = row[i] - column[j];
    return closed[i] == closed[j] ? exp2_of(d < 0.0f ? d : 0.0f) : 0.0f;
  }
};

DEV uint4 scaled8(uint4 v, float f) {
  const two s = {f, f};
  return {scaled(v.x, s), scaled(v.y, s), scaled(v.z, s), scaled(v.w, s)};
}

/// Multiplies row `threadIdx.x & 63` of a [64, K] tile, in an order free of bank conflicts.
template <int K>
DEV void scale_row(u16 *tile, float f) {
  const int row = threadIdx.x & 63;
#pragma unroll
  for (int i = 0; i < K / 8; i++) {
    uint4 *x = (uint4 *)(tile + row * K) + (i ^ (row & 7));
    *x = scaled8(*x, f);
  }
}

/// Threads 0 to 127: rows of q and k to unit length, in place; all must wait.
template <int K>
DEV void normalize_rows(const MixerArgs &p, u16 *q, u16 *k, long long place) {
  if (threadIdx.x >= 128) return;
  const int row = threadIdx.x & 63, is_key = threadIdx.x >> 6;
  u16 *tile = is_key ? k : q;
  float sum = 1e-6f;
#pragma unroll
  for (int i = 0; i < K / 8; i++) {
    const uint4 x = ((const uint4 *)(tile + row * K))[i ^ (row & 7)];
    const u32 part[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int j = 0; j < 4; j++)
      sum += low_of(part[j]) * low_of(part[j]) + high_of(part[j]) * high_of(part[j]);
  }
  const float f = 1.0f / sqrtf(sum);
  scale_row<K>(tile, f);
  if (p.norms) p.norms[place * 128 + threadIdx.x] = f;
}

/// Threads 0 to 127: the same for W columns, with the lengths that normalize_rows kept.
template <int W>
DEV void scale_raw(const MixerArgs &p, u16 *q, u16 *k, long long place) {
  if (threadIdx.x < 128)
    scale_row<W>(threadIdx.x >> 6 ? k : q, p.norms[place * 128 + threadIdx.x]);
}
