// Mamba-1's scan: h[n] = exp(step A[n]) h[n] + step x B[n], y = <h, C> + skip x. One thread a channel,
// 16 tokens at a time, state by state; B and C are the same for all threads of a block.
#include "gyre_cuda_engine_args.h"
#include "prelude.cuh"

#define INTERVAL GYRE_SELECTIVE_INTERVAL

GYRE_DEVICE unsigned resets(const gyre_selective_scan_args &s, long b, long first) {
  unsigned mask = 0;
  if (s.reset)
    for (int j = 0; j < INTERVAL; j++)
      if (first + j < s.tokens && s.reset[b * s.tokens + first + j]) mask |= 1u << j;
  return mask;
}

GYRE_KERNEL selective_scan_forward(gyre_selective_scan_args s) {
  long d = (long)blockIdx.x * blockDim.x + threadIdx.x, b = blockIdx.y;
  if (d >= s.width) return;
  float states[GYRE_SELECTIVE_STATES];
  for (int n = 0; n < s.states; n++) states[n] = load_or(s.h0, (b * s.width + d) * s.states + n, 0.f);
  float skip = load_or(s.skip, d, 0.f);
  long parts = (s.tokens + INTERVAL - 1) / INTERVAL;
  for (long part = 0; part < parts; part++) {
    long first = part * INTERVAL;
    unsigned closed = resets(s, b, first);
    float x[INTERVAL], step[INTERVAL], y[INTERVAL];
#pragma unroll
    for (int j = 0; j < INTERVAL; j++) {
      bool here = first + j < s.tokens;
      long i = (b * s.tokens + first + j) * s.width + d;
      x[j] = here ? load(s.x, i) : 0.f;
      step[j] = here ? load(s.step, i) : 0.f;
      y[j] = skip * x[j];
    }
    for (int n = 0; n < s.states; n++) {
      float A = load(s.A, d * s.states + n), h = states[n];
      if (present(s.kept)) store(s.kept, ((b * parts + part) * s.states + n) * s.width + d, h);
#pragma unroll
      for (int j = 0; j < INTERVAL; j++) {
        if (first + j >= s.tokens) continue;
        long at = (b * s.tokens + first + j) * s.states + n;
        if (closed >> j & 1) h = 0.f;
        h = expf(step[j] * A) * h + step[j] * x[j] * load(s.B, at);
        y[j] += h * load(s.C, at);
      }
      states[n] = h;
    }
#pragma unroll
    for (int j = 0; j < INTERVAL; j++)
      if (first + j < s.tokens) store(s.y, (b * s.tokens + first + j) * s.width + d, y[j]);
  }
  for (int n = 0; n < s.states; n++)
    store(s.h_final, (b * s.width + d) * s.states + n, states[n]);
}

// Blocks of 128 channels; sums over them of the gradients of B and C go through shared memory.
GYRE_KERNEL selective_scan_backward(gyre_selective_scan_args s) {
  __shared__ float sums[2][4][INTERVAL][2];
  long d = (long)blockIdx.x * blockDim.x + threadIdx.x, b = blockIdx.y;
  bool exists = d < s.width;
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  float dh[GYRE_SELECTIVE_STATES], dA[GYRE_SELECTIVE_STATES];
  for (int n = 0; n < s.states; n++) {
    dh[n] = exists ? load_or(s.dh_final, (b * s.width + d) * s.states + n, 0.f) : 0.f;
    dA[n] = 0.f;
  }
  float skip = exists ? load_or(s.skip, d, 0.f) : 0.f, dskip = 0.f;
  long parts = (s.tokens + INTERVAL - 1) / INTERVAL;
  int turn = 0;
  for (long part = parts - 1; part >= 0; part--) {
    long first = part * INTERVAL;
    unsigned closed = resets(s, b, first);
    float x[INTERVAL], step[INTERVAL], dy[INTERVAL], dx[INTERVAL], dstep[INTERVAL];
#pragma unroll
    for (int j = 0; j < INTERVAL; j++) {
      bool here = exists && first + j < s.tokens;
      long i = (b * s.tokens + first + j) * s.width + d;
      x[j] = here ? load(s.x, i) : 0.f;
      step[j] = here ? load(s.step, i) : 0.f;
      dy[j] = here ? load(s.dy, i) : 0.f;
      dx[j] = skip * dy[j];
      dskip += x[j] * dy[j];
      dstep[j] = 0.f;
    }
    for (int n = 0; n < s.states; n++, turn ^= 1) {
      float A = exists ? load(s.A, d * s.states + n) : 0.f;
      float h = exists ? load(s.kept, ((b * parts + part) * s.states + n) * s.width + d) : 0.f;
      float before[INTERVAL];
#pragma unroll
      for (int j = 0; j < INTERVAL; j++) {
        if (closed >> j & 1) h = 0.f;
        before[j] = h;
        if (first + j < s.tokens)
          h = expf(step[j] * A) * h +
              step[j] * x[j] * load(s.B, (b * s.tokens + first + j) * s.states + n);
      }
      float after = h, g = dh[n], slope_A = 0.f;
#pragma unroll
      for (int j = INTERVAL - 1; j >= 0; j--) {
        float dB = 0.f, dC = 0.f;
        if (first + j < s.tokens) {
          long at = (b * s.tokens + first + j) * s.states + n;
          float B = load(s.B, at), C = load(s.C, at);
          g += dy[j] * C;
          dC = dy[j] * after;
          dx[j] += g * step[j] * B;
          dB = g * step[j] * x[j];
          float rate = closed >> j & 1 ? 0.f : expf(step[j] * A), slope = g * rate * before[j];
          dstep[j] += g * x[j] * B + slope * A;
          slope_A += slope * step[j];
          g *= rate;
          // What the token before left, unless a reset hid it: then it is not needed below.
          after = j > 0 ? before[j] : 0.f;
          if (j > 0 && closed >> j & 1) {
            float u = step[j - 1] * x[j - 1] *
                      load(s.B, (b * s.tokens + first + j - 1) * s.states + n);
            after = expf(step[j - 1] * A) * before[j - 1] + u;
          }
        }
        dB = warp_sum(dB);
        dC = warp_sum(dC);
        if (lane == 0) sums[turn][warp][j][0] = dB, sums[turn][warp][j][1] = dC;
      }
      dh[n] = g;
      dA[n] += slope_A;
      __syncthreads();
      if (threadIdx.x < 2 * INTERVAL) {
        int j = threadIdx.x >> 1, which = threadIdx.x & 1;
        float sum = 0.f;
        for (int w = 0; w < 4; w++) sum += sums[turn][w][j][which];
        if (first + j < s.tokens) {
          long at = (((long)blockIdx.x * s.batch + b) * s.tokens + first + j) * s.states + n;
          (which ? s.dC : s.dB)[at] = sum;
        }
      }
    }
#pragma unroll
    for (int j = 0; j < INTERVAL; j++) {
      if (!exists || first + j >= s.tokens) continue;
      long i = (b * s.tokens + first + j) * s.width + d;
      store(s.dx, i, dx[j]);
      store(s.dstep, i, dstep[j]);
    }
  }
  if (!exists) return;
  for (int n = 0; n < s.states; n++) {
    s.dA[(b * s.width + d) * s.states + n] = dA[n];
    if (present(s.dh0)) store(s.dh0, (b * s.width + d) * s.states + n, dh[n]);
  }
  if (s.dskip) s.dskip[b * s.width + d] = dskip;
}
