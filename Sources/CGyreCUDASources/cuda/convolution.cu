// Short convolutions without resets, of at most four taps, over channels in fours: as in sequence.cu,
// with the loads of the next tokens on their way while those before are worked on. A thread walks
// `chunk` tokens of four channels.
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
    if (a.taps == 4 && is_wide(a.weight) && a.weight.dtype == GYRE_F32) {
      EACH_CHANNEL(i) {
        const Four own = load4<false>(a.weight, (d + i) * 4);
#pragma unroll
        for (int j = 0; j < 4; j++) w[j].c[i] = own.c[j];
      }
      return;
    }
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
  auto step = [&](const Raw4<HALF> &raw, long t) {
    x[0] = x[1], x[1] = x[2], x[2] = x[3], x[3] = raw.four();
    Four y;
    EACH_CHANNEL(i) {
      float sum = k.bias.c[i];
#pragma unroll
      for (int j = 0; j < 4; j++) sum += k.w[j].c[i] * x[j].c[i];
      y.c[i] = a.silu ? sum * quick_sigmoid(sum) : sum;
    }
    store4<HALF>(k.piece, k.in_piece(t), y);
  };
  Raw4<HALF> now[8], next[8];
  auto fetch = [&](long t) {
#pragma unroll
    for (int n = 0; n < 8; n++)
      if (t + n < k.last) next[n] = Raw4<HALF>(a.x, k.at(t + n));
  };
  fetch(k.first);
  long t = k.first;
  for (; t + 8 <= k.last; t += 8) {
#pragma unroll
    for (int n = 0; n < 8; n++) now[n] = next[n];
    fetch(t + 8);
#pragma unroll
    for (int n = 0; n < 8; n++) step(now[n], t + n);
  }
#pragma unroll
  for (int n = 0; n < 8; n++)
    if (t + n < k.last) step(next[n], t + n);
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
  // Inside: token t is of the part, and token t - 3 too and of no window.
  auto step = [&](const Raw4<HALF> &raw, const Raw4<HALF> &slope, long t, bool inside) {
    const long gone = t - 3;
    x[0] = x[1], x[1] = x[2], x[2] = x[3], x[3] = raw.four();
    g[0] = g[1], g[1] = g[2], g[2] = g[3], g[3] = slope.four();
    Four dx = zero4();
    EACH_CHANNEL(i) {
      if (a.silu) {
        float sum = k.bias.c[i];
#pragma unroll
        for (int j = 0; j < 4; j++) sum += k.w[j].c[i] * x[j].c[i];
        float s = quick_sigmoid(sum);
        g[3].c[i] *= s * (1.f + sum * (1.f - s));
      }
      if (inside || t < k.last) {
        dbias.c[i] += g[3].c[i];
#pragma unroll
        for (int j = 0; j < 4; j++) dw[j].c[i] += g[3].c[i] * x[j].c[i];
      }
#pragma unroll
      for (int j = 0; j < 4; j++) dx.c[i] += k.w[j].c[i] * g[3 - j].c[i];
    }
    const long kept = gone - (a.tokens - (a.taps - 1));  // place in the window that follows
    if (!inside && present(a.dwindow_final) && kept >= 0 && kept < a.taps - 1) {
      Four more = load4<false>(a.dwindow_final, (k.b * (a.taps - 1) + kept) * a.width + k.d);
      EACH_CHANNEL(i) dx.c[i] += more.c[i];
    }
    const long place = gone + a.taps - 1;  // in the window before
    if (inside || gone >= k.first) store4<HALF>(a.dx, k.at(gone), dx);
    else if (gone < 0 && k.part == 0 && place >= 0 && present(a.dwindow))
      store4<false>(a.dwindow, (k.b * (a.taps - 1) + place) * a.width + k.d, dx);
  };
  const long end = k.last + 3, known = end < a.tokens ? end : a.tokens;
  Raw4<HALF> now[4], next[4], slopes[4], next_slopes[4];
  auto fetch = [&](long t) {
#pragma unroll
    for (int n = 0; n < 4; n++) {
      if (t + n < known) {
        next[n] = Raw4<HALF>(a.x, k.at(t + n));
        next_slopes[n] = Raw4<HALF>(k.piece, k.in_piece(t + n));
      } else {
        next[n] = next_slopes[n] = Raw4<HALF>();
      }
    }
  };
  fetch(k.first);
  for (long t = k.first; t < end; t += 4) {
#pragma unroll
    for (int n = 0; n < 4; n++) now[n] = next[n], slopes[n] = next_slopes[n];
    fetch(t + 4);
    if (t > k.first && t + 4 <= k.last) {
#pragma unroll
      for (int n = 0; n < 4; n++) step(now[n], slopes[n], t + n, true);
    } else {
#pragma unroll
      for (int n = 0; n < 4; n++)
        if (t + n < end) step(now[n], slopes[n], t + n, false);
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
  forward<false>(a);
}
GYRE_KERNEL __launch_bounds__(128, 5)
convolution_half(const __grid_constant__ gyre_convolution_args a) {
  forward<true>(a);
}
// One token, four taps, bfloat16 with weight and window in float32: all that a thread reads is on its way
// before it uses any of it.
GYRE_KERNEL __launch_bounds__(128) convolution_step(const __grid_constant__ gyre_convolution_args a) {
  let_next_begin();
  const long d = ((long)blockIdx.x * blockDim.x + threadIdx.x) * 4, b = blockIdx.y;
  if (d >= a.width) return;
  const float4 *weight = (const float4 *)a.weight.data + d;
  const long at = (b * 3 * a.width + d) / 4, row = a.width / 4;
  const float4 *window = (const float4 *)a.window.data + at;
  const Raw4<true> now(a.x, b * a.width + d);
  const bool has_window = present(a.window);
  const float4 none = make_float4(0.f, 0.f, 0.f, 0.f);
  const float4 x0 = has_window ? window[0] : none, x1 = has_window ? window[row] : none;
  const float4 x2 = has_window ? window[2 * row] : none;
  const float4 w[4] = {weight[0], weight[1], weight[2], weight[3]};
  const Four bias = present(a.bias) ? load4<false>(a.bias, d) : zero4(), x3 = now.four();
  const float before[3][4] = {
      {x0.x, x0.y, x0.z, x0.w}, {x1.x, x1.y, x1.z, x1.w}, {x2.x, x2.y, x2.z, x2.w}};
  Four y;
  EACH_CHANNEL(i) {
    float sum = bias.c[i] + w[i].x * before[0][i];
    sum += w[i].y * before[1][i];
    sum += w[i].z * before[2][i];
    sum += w[i].w * x3.c[i];
    y.c[i] = a.silu ? sum * quick_sigmoid(sum) : sum;
  }
  long start = 0;
#pragma unroll
  for (int p = 0; p < GYRE_CONVOLUTION_PIECES; p++) {
    if (d >= start && d < a.end[p]) store4<true>(a.piece[p], b * (a.end[p] - start) + d - start, y);
    start = a.end[p];
  }
  float4 *after = (float4 *)a.window_final.data + at;
  after[0] = x1, after[row] = x2, after[2 * row] = make_float4(x3.c[0], x3.c[1], x3.c[2], x3.c[3]);
}
GYRE_KERNEL __launch_bounds__(128)
convolution_backward(const __grid_constant__ gyre_convolution_args a) {
  backward<false>(a);
}
GYRE_KERNEL __launch_bounds__(128, 4)
convolution_backward_half(const __grid_constant__ gyre_convolution_args a) {
  backward<true>(a);
}
