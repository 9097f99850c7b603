// Short convolutions without resets, of at most four taps, over channels in fours: as in sequence.cu,
// with the loads of several tokens on their way before the first is used. A thread walks `chunk`
// tokens of four channels.
#include "four.cuh"

// One thread's place and taps; w[3] is the newest token's.
struct Walk {
  const gyre_convolution_args &a;
  long d, b, part, first, last;
  Four w[4], bias;
  gyre_array piece;  // of y or dy, in which `d` is channel `place` of `width`
  long place, width;

  __device__ __forceinline__ Walk(const gyre_convolution_args &args) : a(args) {
    long chunks = (a.tokens + a.chunk - 1) / a.chunk;
    d = ((long)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    b = blockIdx.y / chunks, part = blockIdx.y % chunks;
    first = part * a.chunk;
    last = first + a.chunk < a.tokens ? first + a.chunk : a.tokens;
    if (d >= a.width) return;
    long start = 0;
#pragma unroll
    for (int p = 0; p < GYRE_CONVOLUTION_PIECES; p++) {
      if (d >= start && d < a.end[p]) {
        piece = a.piece[p];
        place = d - start;
        width = a.end[p] - start;
      }
      start = a.end[p];
    }
    bias = present(a.bias) ? load4<false>(a.bias, d) : zero4();
#pragma unroll
    for (int j = 0; j < 4; j++) {
      int tap = j - (4 - a.taps);
      EACH_CHANNEL(i) w[j].c[i] = tap >= 0 ? load(a.weight, (d + i) * a.taps + tap) : 0.f;
    }
  }
  __device__ __forceinline__ long at(long t) const { return (b * a.tokens + t) * a.width + d; }
  __device__ __forceinline__ long in_piece(long t) const {
    return (b * a.tokens + t) * width + place;
  }
  // x of a token before the end, from the given window before the first.
  __device__ __forceinline__ Four token(long t) const {
    if (t >= 0) return load4<false>(a.x, at(t));
    long place = t + a.taps - 1;
    return place >= 0 && present(a.window) ? load4<false>(a.window, (b * (a.taps - 1) + place) * a.width + d)
                                           : zero4();
  }
};

template <bool HALF> GYRE_DEVICE void forward(const gyre_convolution_args &a) {
  Walk k(a);
  if (k.d >= a.width) return;
  Four x[4];
#pragma unroll
  for (int j = 0; j < 3; j++) x[j + 1] = k.token(k.first - 3 + j);
  for (long t0 = k.first; t0 < k.last; t0 += 8) {
    Four next[8];
#pragma unroll
    for (int n = 0; n < 8; n++)
      next[n] = t0 + n < k.last ? load4<HALF>(a.x, k.at(t0 + n)) : zero4();
#pragma unroll
    for (int n = 0; n < 8; n++) {
      if (t0 + n >= k.last) break;
      x[0] = x[1], x[1] = x[2], x[2] = x[3], x[3] = next[n];
      Four y;
      EACH_CHANNEL(i) {
        float sum = k.bias.c[i];
#pragma unroll
        for (int j = 0; j < 4; j++) sum += k.w[j].c[i] * x[j].c[i];
        y.c[i] = a.silu ? sum * quick_sigmoid(sum) : sum;
      }
      store4<HALF>(k.piece, k.in_piece(t0 + n), y);
    }
  }
  if (k.last < a.tokens) return;
#pragma unroll
  for (int j = 1; j < 4; j++) {
    int place = j - 1 - (4 - a.taps);
    if (place >= 0) store4<false>(a.window_final, (k.b * (a.taps - 1) + place) * a.width + k.d, x[j]);
  }
}

// The gradient of token t - 3 is complete with output t, so three outputs of the next part are walked
// too; the weight's gradient is over the part's own outputs.
template <bool HALF> GYRE_DEVICE void backward(const gyre_convolution_args &a) {
  Walk k(a);
  if (k.d >= a.width) return;
  Four x[4], g[4], dw[4], dbias = zero4();
#pragma unroll
  for (int j = 0; j < 4; j++) {
    g[j] = dw[j] = zero4();
    if (j < 3) x[j + 1] = k.token(k.first - 3 + j);
  }
  for (long t0 = k.first; t0 < k.last + 3; t0 += 4) {
    Four next[4], cotangent[4];
#pragma unroll
    for (int n = 0; n < 4; n++) {
      bool is_token = t0 + n < a.tokens && t0 + n < k.last + 3;
      next[n] = is_token ? load4<HALF>(a.x, k.at(t0 + n)) : zero4();
      cotangent[n] = is_token ? load4<HALF>(k.piece, k.in_piece(t0 + n)) : zero4();
    }
#pragma unroll
    for (int n = 0; n < 4; n++) {
      long t = t0 + n, gone = t - 3;
      if (t >= k.last + 3) break;
      x[0] = x[1], x[1] = x[2], x[2] = x[3], x[3] = next[n];
      g[0] = g[1], g[1] = g[2], g[2] = g[3], g[3] = cotangent[n];
      Four dx = zero4();
      EACH_CHANNEL(i) {
        if (a.silu) {
          float sum = k.bias.c[i];
#pragma unroll
          for (int j = 0; j < 4; j++) sum += k.w[j].c[i] * x[j].c[i];
          float s = quick_sigmoid(sum);
          g[3].c[i] *= s * (1.f + sum * (1.f - s));
        }
        if (t < k.last) {
          dbias.c[i] += g[3].c[i];
#pragma unroll
          for (int j = 0; j < 4; j++) dw[j].c[i] += g[3].c[i] * x[j].c[i];
        }
#pragma unroll
        for (int j = 0; j < 4; j++) dx.c[i] += k.w[j].c[i] * g[3 - j].c[i];
      }
      long kept = gone - (a.tokens - (a.taps - 1));  // place in the window that follows
      if (present(a.dwindow_final) && kept >= 0 && kept < a.taps - 1) {
        Four more = load4<false>(a.dwindow_final, (k.b * (a.taps - 1) + kept) * a.width + k.d);
        EACH_CHANNEL(i) dx.c[i] += more.c[i];
      }
      long place = gone + a.taps - 1;  // in the window before
      if (gone >= k.first) store4<HALF>(a.dx, k.at(gone), dx);
      else if (gone < 0 && k.part == 0 && place >= 0 && present(a.dwindow))
        store4<false>(a.dwindow, (k.b * (a.taps - 1) + place) * a.width + k.d, dx);
    }
  }
  gyre_array partial = {a.partial + (long)blockIdx.y * (a.taps + 1) * a.width + k.d, GYRE_F32, 0};
#pragma unroll
  for (int j = 0; j < 4; j++) {
    int tap = j - (4 - a.taps);
    if (tap >= 0) store4<false>(partial, (long)tap * a.width, dw[j]);
  }
  store4<false>(partial, (long)a.taps * a.width, dbias);
}

GYRE_KERNEL __launch_bounds__(128) convolution(const __grid_constant__ gyre_convolution_args a) {
  if (is_half(a.x) && is_half(a.piece[0])) forward<true>(a);
  else forward<false>(a);
}
GYRE_KERNEL __launch_bounds__(128, 4)
convolution_backward(const __grid_constant__ gyre_convolution_args a) {
  if (is_half(a.x) && is_half(a.piece[0]) && is_half(a.dx)) backward<true>(a);
  else backward<false>(a);
}
