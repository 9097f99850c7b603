// Recurrences of single channels that are no plain linear scans: WKV-4 and the running softmax of
// additive gates. A thread a channel of a row; inputs are read some tokens ahead.
#include "gyre_cuda_engine_args.h"
#include "prelude.cuh"

enum { AHEAD = 8 };
struct Channel {
  long b, d, tokens, D;
  GYRE_DEVICE long at(long t) const { return (b * tokens + t) * D + d; }
  GYRE_DEVICE long state() const { return b * D + d; }
};
// Elements of N arrays at AHEAD tokens, as bits: a conversion would wait for the load.
template <int N>
struct Stretch {
  unsigned bits[AHEAD][N];
  int reset[AHEAD];
};
// Tokens first, first + step, ...; those outside are left out.
template <int N>
GYRE_DEVICE void read(
    const Channel &x, const gyre_array *const (&arrays)[N], const int *reset, long first, long step,
    Stretch<N> &s) {
#pragma unroll
  for (int j = 0; j < AHEAD; j++) {
    const long t = first + j * step;
    if (t < 0 || t >= x.tokens) continue;
    s.reset[j] = reset ? reset[x.b * x.tokens + t] : 0;
#pragma unroll
    for (int i = 0; i < N; i++)
      s.bits[j][i] = bits_at(*arrays[i], x.at(t));
  }
}
GYRE_DEVICE bool find(Channel &x, long batch, long tokens, long D) {
  const long n = (long)blockIdx.x * blockDim.x + threadIdx.x;
  x.b = n / D, x.d = n % D, x.tokens = tokens, x.D = D;
  return n < batch * D;
}

// MARK: WKV-4

#define NOTHING -1e38f
struct Sums {
  float num, den, max;
};
struct Output {
  float y, top, own, divisor;
};
GYRE_DEVICE Sums start(const gyre_wkv4_args &a, const Channel &x) {
  if (!present(a.num0)) return {0.f, 0.f, NOTHING};
  return {load(a.num0, x.state()), load(a.den0, x.state()), load(a.max0, x.state())};
}
GYRE_DEVICE void advance(Sums &x, float w, float k, float v) {
  const float top = fmaxf(x.max + w, k), old = expf(x.max + w - top), fresh = expf(k - top);
  x = {old * x.num + fresh * v, old * x.den + fresh, top};
}
GYRE_DEVICE Output output(const Sums &x, float lifted, float v) {
  const float top = fmaxf(x.max, lifted), old = expf(x.max - top), own = expf(lifted - top);
  const float divisor = old * x.den + own;
  return {(old * x.num + own * v) / divisor, top, own, divisor};
}

// Where `sums` is given, also keeps what every token finds: [3, batch, tokens, D].
GYRE_KERNEL wkv4_forward(const __grid_constant__ gyre_wkv4_args a) {
  Channel x;
  if (!find(x, a.batch, a.tokens, a.channels)) return;
  const float w = load(a.w, x.d), u = load(a.u, x.d);
  const gyre_array *const arrays[2] = {&a.k, &a.v};
  const long count = a.batch * a.tokens * a.channels;
  Sums s = start(a, x);
  Stretch<2> now, later;
  read(x, arrays, a.reset, 0, 1, now);
  for (long first = 0; first < a.tokens; first += AHEAD) {
    read(x, arrays, a.reset, first + AHEAD, 1, later);
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
      if (first + j >= a.tokens) break;
      const float k = number(a.k, now.bits[j][0]), v = number(a.v, now.bits[j][1]);
      if (now.reset[j]) s = {0.f, 0.f, NOTHING};
      const long at = x.at(first + j);
      if (a.sums) {
        a.sums[at] = s.num;
        a.sums[count + at] = s.den;
        a.sums[2 * count + at] = s.max;
      } else {
        store(a.y, at, output(s, u + k, v).y);
      }
      advance(s, w, k, v);
    }
    now = later;
  }
  if (a.sums) {
    a.last_max[x.state()] = s.max;
  } else {
    store(a.num, x.state(), s.num);
    store(a.den, x.state(), s.den);
    store(a.max, x.state(), s.max);
  }
}

// The cotangents of N and D are e^-scale (p, q).
GYRE_KERNEL wkv4_backward(const __grid_constant__ gyre_wkv4_args a) {
  Channel x;
  if (!find(x, a.batch, a.tokens, a.channels)) return;
  const float w = load(a.w, x.d), u = load(a.u, x.d);
  const long count = a.batch * a.tokens * a.channels;
  const gyre_array sums[3] = {
      {a.sums, GYRE_F32, 0}, {a.sums + count, GYRE_F32, 0}, {a.sums + 2 * count, GYRE_F32, 0}};
  // An absent dy is read as k and not used.
  const gyre_array *const dy = present(a.dy) ? &a.dy : &a.k;
  const gyre_array *const arrays[6] = {&a.k, &a.v, dy, &sums[0], &sums[1], &sums[2]};
  float p = load_or(a.dnum, x.state(), 0.f), q = load_or(a.dden, x.state(), 0.f);
  float scale = present(a.dnum) || present(a.dden) ? a.last_max[x.state()] : -NOTHING;
  float dw = 0.f, du = 0.f;
  Stretch<6> now, later;
  read(x, arrays, a.reset, a.tokens - 1, -1, now);
  for (long last = a.tokens - 1; last >= 0; last -= AHEAD) {
    read(x, arrays, a.reset, last - AHEAD, -1, later);
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
      const long t = last - j;
      if (t < 0) break;
      const float k = number(a.k, now.bits[j][0]), v = number(a.v, now.bits[j][1]);
      const Sums s = {
          __uint_as_float(now.bits[j][3]), __uint_as_float(now.bits[j][4]),
          __uint_as_float(now.bits[j][5])};
      const Output o = output(s, u + k, v);
      const float dn = present(a.dy) ? number(a.dy, now.bits[j][2]) / o.divisor : 0.f;
      const float dd = -dn * o.y, written = expf(k - scale), own = o.own * (dn * v + dd);
      store(a.dv, x.at(t), o.own * dn + written * p);
      store(a.dk, x.at(t), own + written * (p * v + q));
      du += own;
      dw += expf(s.max + w - scale) * (p * s.num + q * s.den);
      if (now.reset[j]) {
        p = q = 0.f, scale = -NOTHING;
      } else {
        const float next = fminf(scale - w, o.top);
        const float old = expf(next - scale + w), fresh = expf(next - o.top);
        p = old * p + fresh * dn, q = old * q + fresh * dd, scale = next;
      }
    }
    now = later;
  }
  a.dw[x.state()] = dw;
  a.du[x.state()] = du;
  if (present(a.dnum0)) {
    const float factor = expf(load(a.max0, x.state()) - scale);
    store(a.dnum0, x.state(), factor * p);
    store(a.dden0, x.state(), factor * q);
  }
}

// MARK: additive gate

GYRE_DEVICE float softplus(float x) { return fmaxf(x, 0.f) + log1pf(expf(-fabsf(x))); }

GYRE_KERNEL additive_gate_forward(const __grid_constant__ gyre_additive_gate_args a) {
  Channel c;
  if (!find(c, a.batch, a.tokens, a.channels)) return;
  const gyre_array *const arrays[1] = {&a.x};
  float z = load_or(a.z0, c.state(), -INFINITY);
  Stretch<1> now, later;
  read(c, arrays, a.reset, 0, 1, now);
  for (long first = 0; first < a.tokens; first += AHEAD) {
    read(c, arrays, a.reset, first + AHEAD, 1, later);
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
      if (first + j >= a.tokens) break;
      const float x = number(a.x, now.bits[j][0]);
      float w = 1.f, g = 0.f;
      if (now.reset[j] || z == -INFINITY) {
        z = x;
      } else {
        const float d = x - z, s = softplus(d);
        w = sigmoid(d), g = -s, z += s;
      }
      store(a.w, c.at(first + j), w);
      store(a.g, c.at(first + j), g);
    }
    now = later;
  }
  store(a.z, c.state(), z);
}

GYRE_KERNEL additive_gate_backward(const __grid_constant__ gyre_additive_gate_args a) {
  Channel c;
  if (!find(c, a.batch, a.tokens, a.channels)) return;
  const gyre_array *const arrays[4] = {&a.w, &a.g, &a.dw, &a.dg};
  float later_z = load_or(a.dz, c.state(), 0.f);
  Stretch<4> now, later;
  read(c, arrays, nullptr, a.tokens - 1, -1, now);
  for (long last = a.tokens - 1; last >= 0; last -= AHEAD) {
    read(c, arrays, nullptr, last - AHEAD, -1, later);
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
      if (last - j < 0) break;
      const float w = number(a.w, now.bits[j][0]), g = number(a.g, now.bits[j][1]);
      float dx = later_z;
      if (w == 1.f && g == 0.f) {
        later_z = 0.f;
      } else {
        dx = w * (expf(g) * number(a.dw, now.bits[j][2]) - number(a.dg, now.bits[j][3]) + later_z);
        later_z -= dx;
      }
      store(a.dx, c.at(last - j), dx);
    }
    now = later;
  }
  if (present(a.dz0)) store(a.dz0, c.state(), later_z);
}
