// RWKV's token shift without resets, an array for each mix: y_m = x + (before - x) * mix_m. For the
// gradients of x and of the mixes, which come from one pass, a thread walks `chunk` tokens of four channels.
#include "four.cuh"

// At token t of row b; the token before the first is `last`, or zero.
template <bool HALF>
GYRE_DEVICE Four token(const gyre_token_mixes_args &a, long b, long t, long d) {
  if (t >= 0) return load4<HALF>(a.x, (b * a.tokens + t) * a.width + d);
  return present(a.last) ? load4<false>(a.last, b * a.width + d) : zero4();
}

struct Span {
  long d, b, first, last;
  __device__ __forceinline__ Span(const gyre_token_mixes_args &a) {
    long chunks = (a.tokens + a.chunk - 1) / a.chunk;
    d = ((long)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    b = blockIdx.y / chunks;
    first = blockIdx.y % chunks * a.chunk;
    last = first + a.chunk < a.tokens ? first + a.chunk : a.tokens;
  }
};

// A warp takes 128 channels of every eighth row of the block's; the token before is in the first cache, where
// the neighbour warp has it.
template <int MIXES, bool HALF> GYRE_DEVICE void forward(const gyre_token_mixes_args &a) {
  let_next_begin();
  const long d = ((long)blockIdx.x * 32 + (threadIdx.x & 31)) * 4, rows = a.batch * a.tokens;
  if (d >= a.width) return;
  Four mix[MIXES];
  bool own = false;
#pragma unroll
  for (int m = 0; m < MIXES; m++) {
    if (m >= a.mixes) continue;
    mix[m] = load4<false>(a.mix[m], d);
    own |= a.mix[m].stride != 0;
  }
  const long step = (long)gridDim.y * 8;
  for (long r0 = (long)blockIdx.y * 8 + (threadIdx.x >> 5); r0 < rows; r0 += 4 * step) {
    Raw4<HALF> now[4], old[4];
#pragma unroll
    for (int u = 0; u < 4; u++) {
      const long r = r0 + u * step;
      if (r >= rows) continue;
      now[u] = Raw4<HALF>(a.x, r * a.width + d);
      if ((unsigned)r % (unsigned)a.tokens) old[u] = Raw4<HALF>(a.x, (r - 1) * a.width + d);
    }
#pragma unroll
    for (int u = 0; u < 4; u++) {
      const long r = r0 + u * step, at = r * a.width + d;
      if (r >= rows) continue;
      const long b = (unsigned)r / (unsigned)a.tokens, t = r - b * a.tokens;
      const Four x = now[u].four(), before = t ? old[u].four() : token<HALF>(a, b, -1, d);
      if (own) {
#pragma unroll
        for (int m = 0; m < MIXES; m++)
          if (m < a.mixes) mix[m] = load4<false>(a.mix[m], b * a.mix[m].stride + d);
      }
#pragma unroll
      for (int m = 0; m < MIXES; m++) {
        if (m >= a.mixes) break;
        Four y;
        EACH_CHANNEL(i) y.c[i] = x.c[i] + (before.c[i] - x.c[i]) * mix[m].c[i];
        store4<HALF>(a.y[m], at, y);
      }
      if (t == a.tokens - 1) store4<false>(a.last_final, b * a.width + d, x);
    }
  }
}

// dx of token t is complete with the gradients of token t + 1, so one token more is walked.
template <int MIXES, bool HALF> GYRE_DEVICE void backward(const gyre_token_mixes_args &a) {
  Span k(a);
  if (k.d >= a.width) return;
  Four mix[MIXES], dmix[MIXES];
#pragma unroll
  for (int m = 0; m < MIXES; m++) {
    dmix[m] = zero4();
    if (m < a.mixes) mix[m] = load4<false>(a.mix[m], k.d);
  }
  Four before = token<HALF>(a, k.b, k.first - 1, k.d), pending = zero4();
  for (long t = k.first; t <= k.last; t++) {
    Four own = zero4(), shifted = zero4();
    if (t < a.tokens) {
      long at = (k.b * a.tokens + t) * a.width + k.d;
      Four x = load4<HALF>(a.x, at), g[MIXES];
#pragma unroll
      for (int m = 0; m < MIXES; m++) if (m < a.mixes) g[m] = load4<HALF>(a.y[m], at);
      if (present(a.more)) {
        Four more = load4<HALF>(a.more, at);
#pragma unroll
        for (int m = 0; m < MIXES; m++)
          EACH_CHANNEL(i) g[m].c[i] += m == a.more_of ? more.c[i] : 0.f;
      }
#pragma unroll
      for (int m = 0; m < MIXES; m++) {
        if (m >= a.mixes) break;
        EACH_CHANNEL(i) {
          float s = g[m].c[i] * mix[m].c[i];
          shifted.c[i] += s;
          own.c[i] += g[m].c[i] - s;
          if (t < k.last) dmix[m].c[i] += g[m].c[i] * (before.c[i] - x.c[i]);
        }
      }
      before = x;
    } else if (present(a.dlast_final)) {
      shifted = load4<false>(a.dlast_final, k.b * a.width + k.d);
    }
    EACH_CHANNEL(i) pending.c[i] += shifted.c[i];
    if (t > k.first) store4<HALF>(a.dx, (k.b * a.tokens + t - 1) * a.width + k.d, pending);
    else if (t == 0 && present(a.dlast)) store4<false>(a.dlast, k.b * a.width + k.d, pending);
    pending = own;
  }
#pragma unroll
  for (int m = 0; m < MIXES; m++) {
    if (m >= a.mixes) break;
    gyre_array to = {a.sums + ((long)blockIdx.y * a.mixes + m) * a.width + k.d, GYRE_F32, 0};
    store4<false>(to, 0, dmix[m]);
  }
}

// All arrays over tokens have one type, or are treated one by one.
GYRE_DEVICE bool all_half(const gyre_token_mixes_args &a) {
  bool all = is_half(a.x) && is_half(a.dx) && is_half(a.more);
  for (int m = 0; m < a.mixes; m++) all = all && is_half(a.y[m]);
  return all;
}

GYRE_KERNEL __launch_bounds__(256) token_mixes(const __grid_constant__ gyre_token_mixes_args a) {
  bool half = all_half(a);
  if (a.mixes == 1 && half) forward<1, true>(a);
  else if (a.mixes <= 6 && half) forward<6, true>(a);
  else forward<GYRE_MIXES, false>(a);
}
GYRE_KERNEL __launch_bounds__(128, 4)
token_mixes_backward(const __grid_constant__ gyre_token_mixes_args a) {
  bool half = all_half(a);
  if (a.mixes == 1 && half) backward<1, true>(a);
  else if (a.mixes <= 6 && half) backward<6, true>(a);
  else backward<GYRE_MIXES, false>(a);
}
