// The diagonal recurrence h ← a ∘ h + u over [B, T, D] and its gradients, one pass over the data.
//
// A block owns C channels of one row of the batch and walks the time in tiles of 16 · 8 · 64 / C
// tokens. A thread holds two channels of 8 consecutive tokens and has the next tile's loads in
// flight; threads exchange (Π a, h with zero start) through shuffles and shared memory.
#include "mma.cuh"

struct ScanArgs {
  const void *decay;            // [B, T, D]: a, or ln a ≤ 0
  const void *input;            // [B, T, D]: u
  const float *initial;         // [B, D] or null
  const int *reset;             // [B, T] or null; nonzero: h is zero before the token
  void *h;                      // [B, T, D], written forward, read backward
  float *final;                 // [B, D] or null
  const void *dh;               // [B, T, D]
  const float *d_final;         // [B, D] or null
  void *da, *du;                // gradients of decay and input, in their types
  float *d_initial;             // [B, D] or null
  int batch, tokens, channels;  // D even
  int decay_is_log;
  int decay_is_float;  // not read: the kernel's name says it
};

template <typename E>
struct Raw;
template <>
struct Raw<bf16> {
  u32 v;
  DEV_MEMBER two value() const { return {low_of(v), high_of(v)}; }
};
template <>
struct Raw<float> {
  two v;
  DEV_MEMBER two value() const { return v; }
};

enum { SCAN_TOKENS = 8, SCAN_THREADS = 512 };

/// Grid (⌈D / C⌉, B), 512 threads, no dynamic shared memory. E: type of u, h; G: type of the decay.
template <int C, bool BACK, typename E, typename G>
DEV void scan(const ScanArgs &p) {
  constexpr int PAIRS = C / 2, GROUPS = 32 / PAIRS, TILE = SCAN_TOKENS * SCAN_THREADS / PAIRS;
  __shared__ float carries[2][16][PAIRS][4];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int pair = lane % PAIRS, segment = warp * GROUPS + lane / PAIRS;
  const int channel = blockIdx.x * C + pair * 2;
  const bool is_mine = channel < p.channels;
  const long long base = (long long)blockIdx.y * p.tokens * p.channels + channel;
  const float log2e = 1.4426950408889634f;
  const int tiles = (p.tokens + TILE - 1) / TILE;

  // Token `i` of this thread in a tile, in the order in which the recurrence visits them.
  const auto token = [&](int tile, int i) {
    const int order = tile * TILE + segment * SCAN_TOKENS + i;
    return BACK ? p.tokens - 1 - order : order;
  };
  Raw<G> gate[SCAN_TOKENS];
  Raw<E> in[SCAN_TOKENS], past[SCAN_TOKENS];
  u32 reset = 0, present = 0;
  const E *source = (const E *)(BACK ? p.dh : p.input);
  const auto fetch = [&](int tile) {
    reset = present = 0;
#pragma unroll
    for (int i = 0; i < SCAN_TOKENS; i++) {
      const int t = token(tile, i);
      gate[i] = Raw<G>();
      in[i] = past[i] = Raw<E>();
      if (t >= 0 && t < p.tokens && is_mine) {
        const long long at = base + (long long)t * p.channels;
        present |= 1u << i;
        gate[i] = *(const Raw<G> *)((const G *)p.decay + at);
        in[i] = *(const Raw<E> *)(source + at);
        if (BACK && t > 0) past[i] = *(const Raw<E> *)((const E *)p.h + at - p.channels);
        if (p.reset && p.reset[(long long)blockIdx.y * p.tokens + t]) reset |= 1u << i;
      }
    }
  };
  fetch(0);
  two carry = {0.0f, 0.0f};
  const float *begin = BACK ? p.d_final : p.initial;
  if (begin && is_mine) carry = load_two(begin, (long long)blockIdx.y * p.channels + channel);

#pragma unroll 1
  for (int tile = 0; tile < tiles; tile++) {
    two a[SCAN_TOKENS], x[SCAN_TOKENS], before[SCAN_TOKENS];
#pragma unroll
    for (int i = 0; i < SCAN_TOKENS; i++) {
      a[i] = gate[i].value();
      x[i] = in[i].value();
      if (BACK) before[i] = past[i].value();
      if (p.decay_is_log) a[i] = {exp2_of(a[i].x * log2e), exp2_of(a[i].y * log2e)};
      if (reset >> i & 1) a[i] = {0.0f, 0.0f};
      if (!(present >> i & 1)) a[i] = {1.0f, 1.0f};
    }
    const u32 was_present = present;
    if (tile + 1 < tiles) fetch(tile + 1);

    // What the thread's tokens do to a carry: carry → all ∘ carry + end.
    two all = {1.0f, 1.0f}, end = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < SCAN_TOKENS; i++) {
      all = {all.x * a[i].x, all.y * a[i].y};
      if (BACK)
        end = {a[i].x * (end.x + x[i].x), a[i].y * (end.y + x[i].y)};
      else
        end = {a[i].x * end.x + x[i].x, a[i].y * end.y + x[i].y};
    }
    // Inclusive over the segments of a warp, then over the warps.
#pragma unroll
    for (int s = 1; s < GROUPS; s *= 2) {
      const float ax = __shfl_up_sync(0xffffffffu, all.x, s * PAIRS);
      const float ay = __shfl_up_sync(0xffffffffu, all.y, s * PAIRS);
      const float ex = __shfl_up_sync(0xffffffffu, end.x, s * PAIRS);
      const float ey = __shfl_up_sync(0xffffffffu, end.y, s * PAIRS);
      if (lane / PAIRS >= s) {
        end = {all.x * ex + end.x, all.y * ey + end.y};
        all = {all.x * ax, all.y * ay};
      }
    }
    float (*table)[PAIRS][4] = carries[tile & 1];
    if (lane / PAIRS == GROUPS - 1) {
      float *to = table[warp][pair];
      to[0] = all.x;
      to[1] = all.y;
      to[2] = end.x;
      to[3] = end.y;
    }
    __syncthreads();
    two enter = carry;
#pragma unroll
    for (int w = 0; w < 16; w++) {
      if (w == warp) enter = carry;
      const float *f = table[w][pair];
      carry = {f[0] * carry.x + f[2], f[1] * carry.y + f[3]};
    }
    if (GROUPS > 1) {
      const float ax = __shfl_up_sync(0xffffffffu, all.x, PAIRS);
      const float ay = __shfl_up_sync(0xffffffffu, all.y, PAIRS);
      const float ex = __shfl_up_sync(0xffffffffu, end.x, PAIRS);
      const float ey = __shfl_up_sync(0xffffffffu, end.y, PAIRS);
      if (lane / PAIRS > 0) enter = {ax * enter.x + ex, ay * enter.y + ey};
    }
#pragma unroll
    for (int i = 0; i < SCAN_TOKENS; i++) {
      const int t = token(tile, i);
      if (!(was_present >> i & 1)) continue;
      const long long at = base + (long long)t * p.channels;
      if (BACK) {
        const two total = {x[i].x + enter.x, x[i].y + enter.y};
        if (t == 0) {
          before[i] = {0.0f, 0.0f};
          if (p.initial)
            before[i] = load_two(p.initial, (long long)blockIdx.y * p.channels + channel);
        }
        enter = {a[i].x * total.x, a[i].y * total.y};
        two slope = {total.x * before[i].x, total.y * before[i].y};
        if (p.decay_is_log) slope = {slope.x * a[i].x, slope.y * a[i].y};
        // A reset is a decay of 0 whatever the gate says: nothing flows to the gate.
        const bool closed = p.reset && p.reset[(long long)blockIdx.y * p.tokens + t];
        store_two((G *)p.da, at, closed ? 0.0f : slope.x, closed ? 0.0f : slope.y);
        store_two((E *)p.du, at, total.x, total.y);
      } else {
        enter = {a[i].x * enter.x + x[i].x, a[i].y * enter.y + x[i].y};
        store_two((E *)p.h, at, enter.x, enter.y);
      }
    }
  }
  float *last = BACK ? p.d_initial : p.final;
  if (last && is_mine && segment == 0)
    store_two(last, (long long)blockIdx.y * p.channels + channel, carry.x, carry.y);
}

#define DIAGONAL_SCAN(E, e, G, g, C)                                    \
  ENTRY(diagonal_scan_forward_##e##_##g##_c##C, ScanArgs, SCAN_THREADS, \
        scan<C, false, E, G>(args))                                     \
  ENTRY(diagonal_scan_backward_##e##_##g##_c##C, ScanArgs, SCAN_THREADS, scan<C, true, E, G>(args))

DIAGONAL_SCAN(bf16, bf16, bf16, bf16, 64)
DIAGONAL_SCAN(bf16, bf16, bf16, bf16, 16)
DIAGONAL_SCAN(bf16, bf16, float, float, 64)
DIAGONAL_SCAN(bf16, bf16, float, float, 16)
DIAGONAL_SCAN(float, float, float, float, 64)
DIAGONAL_SCAN(float, float, float, float, 16)
