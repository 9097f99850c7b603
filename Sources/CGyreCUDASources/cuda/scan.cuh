// The diagonal recurrence with its gates made on the way: one thread a channel, eight tokens of loads
// in flight.
#pragma once
#include "gyre_cuda_engine_args.h"
#include "prelude.cuh"

#define SCAN_AHEAD 8

template <class Gates> GYRE_DEVICE void scan_forward(const gyre_scan_args &s) {
  long n = (long)blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= s.batch * s.width) return;
  long b = n / s.width, d = n % s.width;
  Gates gates(s, d);
  float h = load_or(s.h0, n, 0.f);
  long i = b * s.tokens * s.width + d;
  const int *reset = s.reset ? s.reset + b * s.tokens : nullptr;
  for (long t = 0; t < s.tokens; t += SCAN_AHEAD, i += SCAN_AHEAD * s.width) {
    float x[SCAN_AHEAD], u[SCAN_AHEAD];
#pragma unroll
    for (int j = 0; j < SCAN_AHEAD; j++) {
      if (t + j >= s.tokens) continue;
      x[j] = gates.load_first(s, i + j * s.width);
      u[j] = load(s.u, i + j * s.width);
    }
#pragma unroll
    for (int j = 0; j < SCAN_AHEAD; j++) {
      if (t + j >= s.tokens) continue;
      if (reset && reset[t + j]) h = gates.input(x[j], u[j]);
      else h = gates.rate(x[j]) * h + gates.input(x[j], u[j]);
      store(s.h, i + j * s.width, h);
    }
  }
  store(s.h_final, n, h);
}

template <class Gates> GYRE_DEVICE void scan_backward(const gyre_scan_args &s) {
  long n = (long)blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= s.batch * s.width) return;
  long b = n / s.width, d = n % s.width;
  Gates gates(s, d);
  float carry = load_or(s.dh_final, n, 0.f), h0 = load_or(s.h0, n, 0.f);
  long row = b * s.tokens * s.width + d;
  const int *reset = s.reset ? s.reset + b * s.tokens : nullptr;
  for (long end = s.tokens; end > 0; end -= SCAN_AHEAD) {
    float x[SCAN_AHEAD], u[SCAN_AHEAD], h[SCAN_AHEAD], dh[SCAN_AHEAD];
#pragma unroll
    for (int j = 0; j < SCAN_AHEAD; j++) {
      long t = end - 1 - j;
      if (t < 0) continue;
      long i = row + t * s.width;
      x[j] = gates.load_first(s, i);
      u[j] = Gates::needs_input ? load(s.u, i) : 0.f;
      h[j] = t > 0 ? load(s.h, i - s.width) : h0;
      dh[j] = load_or(s.dh, i, 0.f);
    }
#pragma unroll
    for (int j = 0; j < SCAN_AHEAD; j++) {
      long t = end - 1 - j;
      if (t < 0) continue;
      bool closed = reset && reset[t];
      float total = dh[j] + carry, rate = closed ? 0.f : gates.rate(x[j]);
      gates.gradient(s, row + t * s.width, x[j], u[j], total, closed ? 0.f : total * h[j], rate);
      carry = total * rate;
    }
  }
  gates.finish(s, n);
  if (present(s.dh0)) store(s.dh0, n, carry);
}
