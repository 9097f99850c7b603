// Short convolution, rotary positions, token shift.
#include "prelude.cuh"

// MARK: short convolution
//
// A thread walks `chunk` tokens of one channel with the last taps in registers; neighbours walk
// neighbouring channels. A reset empties the window.

template <int W> struct Window {
  float x[W];  // oldest first; the last is the current token
  GYRE_DEVICE void clear() {
#pragma unroll
    for (int j = 0; j < W; j++) x[j] = 0.f;
  }
  GYRE_DEVICE void push(float v) {
#pragma unroll
    for (int j = 0; j + 1 < W; j++) x[j] = x[j + 1];
    x[W - 1] = v;
  }
};

// The token before `first` and those before it, as the taps of `first` see them.
template <int W>
GYRE_DEVICE void fill_window(
    const gyre_convolution_args &a, long b, long first, long d, Window<W> &window) {
  window.clear();
  for (int j = 0; j < W - 1; j++) {
    long t = first - (W - 1) + j;
    long seen = t + a.taps - 1;  // place in the given window where t < 0
    if (t >= 0) {
      if (a.reset && a.reset[b * a.tokens + t]) window.clear();
      window.push(load(a.x, (b * a.tokens + t) * a.width + d));
    } else {
      window.push(seen >= 0 && present(a.window)
                      ? load(a.window, (b * (a.taps - 1) + seen) * a.width + d) : 0.f);
    }
  }
}

// Taps of a channel, newest last; missing ones 0.
template <int W>
GYRE_DEVICE void load_taps(const gyre_convolution_args &a, long d, float (&w)[W]) {
#pragma unroll
  for (int j = 0; j < W; j++) {
    int tap = j - (W - a.taps);
    w[j] = tap >= 0 ? load(a.weight, d * a.taps + tap) : 0.f;
  }
}

template <int W> GYRE_DEVICE void convolve(const gyre_convolution_args &a) {
  long chunks = (a.tokens + a.chunk - 1) / a.chunk;
  if (chunks == 0) chunks = 1;
  long d = (long)blockIdx.x * blockDim.x + threadIdx.x;
  long b = blockIdx.y / chunks, c = blockIdx.y % chunks;
  if (d >= a.width) return;
  long first = c * a.chunk, last = first + a.chunk < a.tokens ? first + a.chunk : a.tokens;
  float w[W], bias = load_or(a.bias, d, 0.f);
  load_taps(a, d, w);
  Window<W> window;
  fill_window(a, b, first, d, window);
  for (long t = first; t < last; t++) {
    if (a.reset && a.reset[b * a.tokens + t]) window.clear();
    window.push(load(a.x, (b * a.tokens + t) * a.width + d));
    float sum = bias;
#pragma unroll
    for (int j = 0; j < W; j++) sum += w[j] * window.x[j];
    store(a.y, (b * a.tokens + t) * a.width + d, a.silu ? silu(sum) : sum);
  }
  if (last < a.tokens || c != chunks - 1) return;
  // What follows sees the last taps - 1 tokens.
#pragma unroll
  for (int j = 1; j < W; j++) {
    int place = j - 1 - (W - a.taps);
    if (place >= 0) store(a.window_final, (b * (a.taps - 1) + place) * a.width + d, window.x[j]);
  }
}

// dx of the chunk's tokens needs the taps - 1 outputs that follow; the weight's gradient is over the
// chunk's own outputs.
template <int W> GYRE_DEVICE void convolve_backward(const gyre_convolution_args &a) {
  long chunks = (a.tokens + a.chunk - 1) / a.chunk;
  if (chunks == 0) chunks = 1;
  long d = (long)blockIdx.x * blockDim.x + threadIdx.x;
  long b = blockIdx.y / chunks, c = blockIdx.y % chunks;
  if (d >= a.width) return;
  long first = c * a.chunk, last = first + a.chunk < a.tokens ? first + a.chunk : a.tokens;
  float w[W], dw[W], dbias = 0.f, bias = load_or(a.bias, d, 0.f);
  load_taps(a, d, w);
  Window<W> window;
  fill_window(a, b, first, d, window);
  // Gradients of the tokens in the window, and whether later outputs still see them.
  float pending[W], visible[W];
#pragma unroll
  for (int j = 0; j < W; j++) dw[j] = pending[j] = 0.f, visible[j] = 1.f;
  // A reset inside the filled window hides what is before it.
  for (int j = 0; j < W - 1; j++) {
    long t = first - (W - 1) + j;
    if (t >= 0 && a.reset && a.reset[b * a.tokens + t]) {
#pragma unroll
      for (int i = 0; i < W; i++)
        if (i - 1 < j) visible[i] = 0.f;
    }
  }
  // After the shift at token t, entry j stands for token t - (W - 1) + j.
  for (long t = first; t < last + W - 1; t++) {
    bool exists = t < a.tokens;
    // The oldest entry leaves: its gradient is complete.
    float leaving = pending[0];
#pragma unroll
    for (int j = 0; j + 1 < W; j++) pending[j] = pending[j + 1], visible[j] = visible[j + 1];
    pending[W - 1] = 0.f;
    visible[W - 1] = 1.f;
    long gone = t - W;
    for (int once = 0; once < 1; once++) {
      if (gone >= first && gone < last) {
        store(a.dx, (b * a.tokens + gone) * a.width + d, leaving);
      } else if (gone < 0 && c == 0 && present(a.dwindow) && gone + a.taps - 1 >= 0) {
        store(a.dwindow, (b * (a.taps - 1) + gone + a.taps - 1) * a.width + d, leaving);
      }
    }
    if (!exists) {
      window.push(0.f);
      continue;
    }
    if (a.reset && a.reset[b * a.tokens + t]) {
      window.clear();
#pragma unroll
      for (int j = 0; j + 1 < W; j++) visible[j] = 0.f;
    }
    window.push(load(a.x, (b * a.tokens + t) * a.width + d));
    float g = load(a.dy, (b * a.tokens + t) * a.width + d);
    if (a.silu) {
      float sum = bias;
#pragma unroll
      for (int j = 0; j < W; j++) sum += w[j] * window.x[j];
      g *= silu_slope(sum);
    }
    if (t < last) {
      dbias += g;
#pragma unroll
      for (int j = 0; j < W; j++) dw[j] += g * window.x[j];
    }
#pragma unroll
    for (int j = 0; j < W; j++) pending[j] += g * w[j] * visible[j];
    if (t == a.tokens - 1 && present(a.dwindow_final)) {
      // The window that follows holds entries 1 and later.
#pragma unroll
      for (int j = 1; j < W; j++) {
        int place = j - 1 - (W - a.taps);
        if (place >= 0)
          pending[j] +=
              visible[j] * load(a.dwindow_final, (b * (a.taps - 1) + place) * a.width + d);
      }
    }
  }
  // Entries still here: tokens last - 1 and before it, W of them.
#pragma unroll
  for (int j = 0; j < W; j++) {
    long t = last + W - 2 - (W - 1) + j;
    if (t >= first && t < last) {
      store(a.dx, (b * a.tokens + t) * a.width + d, pending[j]);
    } else if (t < 0 && c == 0 && present(a.dwindow) && t + a.taps - 1 >= 0) {
      store(a.dwindow, (b * (a.taps - 1) + t + a.taps - 1) * a.width + d, pending[j]);
    }
  }
  float *partial = a.partial + (long)blockIdx.y * (a.taps + 1) * a.width + d;
#pragma unroll
  for (int j = 0; j < W; j++) {
    int tap = j - (W - a.taps);
    if (tap >= 0) partial[(long)tap * a.width] = dw[j];
  }
  partial[(long)a.taps * a.width] = dbias;
}

GYRE_KERNEL short_convolution(gyre_convolution_args a) {
  if (a.taps <= 2) convolve<2>(a);
  else if (a.taps <= 4) convolve<4>(a);
  else convolve<16>(a);
}
GYRE_KERNEL short_convolution_backward(gyre_convolution_args a) {
  if (a.taps <= 2) convolve_backward<2>(a);
  else if (a.taps <= 4) convolve_backward<4>(a);
  else convolve_backward<16>(a);
}

// One thread a channel and tap.
GYRE_KERNEL short_convolution_weights(gyre_convolution_sum_args a) {
  long d = (long)blockIdx.x * blockDim.x + threadIdx.x;
  int tap = blockIdx.y;
  if (d >= a.width || (tap == a.taps && !present(a.dbias))) return;
  // Thirty-two loads on their way at a time.
  float sums[4] = {0.f, 0.f, 0.f, 0.f};
  for (long p = 0; p < a.parts; p += 32) {
    float next[32];
#pragma unroll
    for (int j = 0; j < 32; j++)
      next[j] = p + j < a.parts ? a.partial[((p + j) * (a.taps + 1) + tap) * a.width + d] : 0.f;
#pragma unroll
    for (int j = 0; j < 32; j++) sums[j & 3] += next[j];
  }
  float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  if (tap == a.taps) store(a.dbias, d, sum);
  else store(a.dweight, d * a.taps + tap, sum);
}

// MARK: rotary
//
// One thread a token and pair: the angle in double, then all rows and heads.
GYRE_KERNEL rotary(gyre_rotary_args a) {
  long pairs = a.rotated / 2, rest = a.size - a.rotated;
  long across = pairs > rest ? pairs : rest;
  for (long n = (long)blockIdx.x * blockDim.x + threadIdx.x; n < a.tokens * across;
       n += (long)gridDim.x * blockDim.x) {
    long t = n / across, i = n % across;
    float cosine = 1.f, sine = 0.f;
    if (i < pairs) {
      double angle = (double)(a.offset + t) * pow(a.base, -2. * (double)i / (double)a.rotated);
      double s, c;
      sincos(angle, &s, &c);
      cosine = (float)c;
      sine = (float)(a.inverts ? -s : s);
    }
    long first = a.interleaved ? 2 * i : i, second = a.interleaved ? 2 * i + 1 : i + pairs;
    for (long bh = blockIdx.y; bh < a.batch * a.heads; bh += gridDim.y) {
      long row = ((bh / a.heads * a.tokens + t) * a.heads + bh % a.heads) * a.size;
      if (i < pairs) {
        float x = load(a.x, row + first), y = load(a.x, row + second);
        store(a.y, row + first, x * cosine - y * sine);
        store(a.y, row + second, x * sine + y * cosine);
      }
      if (i < rest) store(a.y, row + a.rotated + i, load(a.x, row + a.rotated + i));
    }
  }
}

// The same for whole pieces of eight: 16 divides what rotates, 8 the rest, rows are aligned. A thread has
// eight pairs of one token and head in every sequence; angles are reduced in double, to turns, and
// then taken in float.
template <bool HALF> GYRE_DEVICE void rotate_wide(const gyre_rotary_args &a) {
  __shared__ double rates[GYRE_ROTARY_PAIRS];  // in turns a position
  const int pairs = (int)a.rotated / 2, heads = (int)a.heads;
  for (int i = threadIdx.x; i < pairs; i += blockDim.x)
    rates[i] = pow(a.base, -2. * (double)i / (double)a.rotated) * 0.15915494309189535;
  __syncthreads();
  const int turning = pairs / 8, groups = turning + (int)(a.size - a.rotated) / 8;
  const int n = (int)(blockIdx.x * blockDim.x + threadIdx.x), group = n % groups, row = n / groups;
  const int t = row / heads;
  if (t >= a.tokens) return;
  const long step = a.tokens * a.heads * a.size;
  long at = (long)row * a.size + blockIdx.y * step;
  float x[8], y[8], cosine[8], sine[8];
  if (group >= turning) {
    at += a.rotated + (group - turning) * 8;
    for (long b = blockIdx.y; b < a.batch; b += gridDim.y, at += gridDim.y * step) {
      get8<HALF>(a.x, at, x);
      put8<HALF>(a.y, at, x);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const double turns = (double)(a.offset + t) * rates[group * 8 + i];
    sincospif((float)(2. * (turns - rint(turns))), sine + i, cosine + i);
    if (a.inverts) sine[i] = -sine[i];
  }
  at += group * (a.interleaved ? 16 : 8);
  const long across = a.interleaved ? 8 : pairs;
  for (long b = blockIdx.y; b < a.batch; b += gridDim.y, at += gridDim.y * step) {
    get8<HALF>(a.x, at, x);
    get8<HALF>(a.x, at + across, y);
    if (a.interleaved) {
#pragma unroll
      for (int i = 0; i < 8; i += 2) {
        const float u = x[i], v = y[i];
        x[i] = u * cosine[i / 2] - x[i + 1] * sine[i / 2];
        x[i + 1] = u * sine[i / 2] + x[i + 1] * cosine[i / 2];
        y[i] = v * cosine[4 + i / 2] - y[i + 1] * sine[4 + i / 2];
        y[i + 1] = v * sine[4 + i / 2] + y[i + 1] * cosine[4 + i / 2];
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const float u = x[i];
        x[i] = u * cosine[i] - y[i] * sine[i];
        y[i] = u * sine[i] + y[i] * cosine[i];
      }
    }
    put8<HALF>(a.y, at, x);
    put8<HALF>(a.y, at + across, y);
  }
}
GYRE_KERNEL __launch_bounds__(256) rotary_wide(gyre_rotary_args a) { rotate_wide<false>(a); }
GYRE_KERNEL __launch_bounds__(256) rotary_wide_half(gyre_rotary_args a) { rotate_wide<true>(a); }

// MARK: token shift

// What token t of row b mixes with.
GYRE_DEVICE float before(const gyre_token_shift_args &a, long b, long t, long d) {
  if (a.reset && a.reset[b * a.tokens + t]) return 0.f;
  if (t > 0) return load(a.x, (b * a.tokens + t - 1) * a.width + d);
  return load_or(a.last, b * a.width + d, 0.f);
}

GYRE_KERNEL token_shift(gyre_token_shift_args a) {
  long count = a.batch * a.tokens * a.width;
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < count;
       i += (long)gridDim.x * blockDim.x) {
    long d = i % a.width, t = i / a.width % a.tokens, b = i / a.width / a.tokens;
    float x = load(a.x, i), step = before(a, b, t, d) - x;
    for (long j = 0; j < a.mixes; j++)
      store(a.y, j * count + i, x + step * load(a.mix, j * a.width + d));
    if (t == a.tokens - 1) store(a.last_final, b * a.width + d, x);
  }
}

GYRE_KERNEL token_shift_backward(gyre_token_shift_args a) {
  long count = a.batch * a.tokens * a.width;
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < count;
       i += (long)gridDim.x * blockDim.x) {
    long d = i % a.width, t = i / a.width % a.tokens, b = i / a.width / a.tokens;
    bool passes = t + 1 < a.tokens && !(a.reset && a.reset[b * a.tokens + t + 1]);
    bool first = t == 0 && present(a.dlast);
    bool shut = a.reset && a.reset[b * a.tokens + t];
    float dx = 0.f, dlast = 0.f;
    for (long j = 0; j < a.mixes; j++) {
      float mix = load(a.mix, j * a.width + d), g = load(a.dy, j * count + i);
      dx += g * (1.f - mix);
      if (passes) dx += load(a.dy, j * count + i + a.width) * mix;
      if (first && !shut) dlast += g * mix;
    }
    if (t == a.tokens - 1 && present(a.dlast_final)) dx += load(a.dlast_final, b * a.width + d);
    store(a.dx, i, dx);
    if (first) store(a.dlast, b * a.width + d, dlast);
  }
}

// Gradient of mix blockIdx.z over part blockIdx.y of the tokens.
GYRE_KERNEL token_shift_mix_gradient(gyre_token_shift_args a) {
  long d = (long)blockIdx.x * blockDim.x + threadIdx.x, j = blockIdx.z, part = blockIdx.y;
  if (d >= a.width) return;
  long rows = a.batch * a.tokens, each = (rows + a.splits - 1) / a.splits;
  long first = part * each, last = first + each < rows ? first + each : rows;
  float sum = 0.f;
  for (long r = first; r < last; r++) {
    long i = r * a.width + d;
    float step = before(a, r / a.tokens, r % a.tokens, d) - load(a.x, i);
    sum += load(a.dy, j * rows * a.width + i) * step;
  }
  a.dmix[(part * a.mixes + j) * a.width + d] = sum;
}
