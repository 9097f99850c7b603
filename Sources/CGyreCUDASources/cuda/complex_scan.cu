// The diagonal recurrence in complex numbers; one thread a channel.
#include "gyre_cuda_engine_args.h"
#include "prelude.cuh"

struct Complex {
  float re, im;
};
GYRE_DEVICE Complex load(const gyre_array (&a)[2], long i) { return {load(a[0], i), load(a[1], i)}; }
GYRE_DEVICE void store(const gyre_array (&a)[2], long i, Complex x) {
  store(a[0], i, x.re);
  store(a[1], i, x.im);
}

#define COMPLEX_AHEAD 8

GYRE_KERNEL complex_scan_forward(gyre_complex_scan_args s) {
  long n = (long)blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= s.batch * s.width) return;
  long b = n / s.width, d = n % s.width, row = b * s.tokens * s.width + d;
  Complex h = {load_or(s.h0[0], n, 0.f), load_or(s.h0[1], n, 0.f)};
  Complex constant = {0.f, 0.f};
  if (s.is_constant) constant = load(s.a, d);
  for (long first = 0; first < s.tokens; first += COMPLEX_AHEAD) {
    Complex a[COMPLEX_AHEAD], u[COMPLEX_AHEAD];
#pragma unroll
    for (int j = 0; j < COMPLEX_AHEAD; j++) {
      if (first + j >= s.tokens) continue;
      long i = row + (first + j) * s.width;
      a[j] = s.is_constant ? constant : load(s.a, i);
      u[j] = load(s.u, i);
    }
#pragma unroll
    for (int j = 0; j < COMPLEX_AHEAD; j++) {
      long t = first + j;
      if (t >= s.tokens) continue;
      if (s.reset && s.reset[b * s.tokens + t]) h = {0.f, 0.f};
      h = {a[j].re * h.re - a[j].im * h.im + u[j].re, a[j].re * h.im + a[j].im * h.re + u[j].im};
      store(s.h, row + t * s.width, h);
    }
  }
  store(s.h_final, n, h);
}

GYRE_KERNEL complex_scan_backward(gyre_complex_scan_args s) {
  long n = (long)blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= s.batch * s.width) return;
  long b = n / s.width, d = n % s.width, row = b * s.tokens * s.width + d;
  Complex carry = {load_or(s.dh_final[0], n, 0.f), load_or(s.dh_final[1], n, 0.f)};
  Complex h0 = {load_or(s.h0[0], n, 0.f), load_or(s.h0[1], n, 0.f)};
  Complex constant = {0.f, 0.f}, sum = {0.f, 0.f};
  if (s.is_constant) constant = load(s.a, d);
  for (long t = s.tokens - 1; t >= 0; t--) {
    long i = row + t * s.width;
    bool closed = s.reset && s.reset[b * s.tokens + t];
    Complex dh = load(s.dh, i), total = {dh.re + carry.re, dh.im + carry.im};
    store(s.du, i, total);
    Complex h = {0.f, 0.f}, a = {0.f, 0.f};
    if (!closed) {
      h = t > 0 ? load(s.h, i - s.width) : h0;
      a = s.is_constant ? constant : load(s.a, i);
    }
    Complex da = {total.re * h.re + total.im * h.im, total.im * h.re - total.re * h.im};
    if (s.is_constant) sum = {sum.re + da.re, sum.im + da.im};
    else store(s.da, i, da);
    carry = {a.re * total.re + a.im * total.im, a.re * total.im - a.im * total.re};
  }
  if (s.is_constant) store(s.da, n, sum);
  if (present(s.dh0[0])) store(s.dh0[0], n, carry.re);
  if (present(s.dh0[1])) store(s.dh0[1], n, carry.im);
}
