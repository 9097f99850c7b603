// Optimiser steps in place.
#include "prelude.cuh"

// All parameters in one launch: block c takes 8192 elements of one of them. 28 bytes an
// element, and 2 where products have asked for its values in bfloat16 before.
GYRE_KERNEL adamw(const __grid_constant__ gyre_adamw_args a) {
  int low = 0, high = (int)a.entries - 1;
  while (low < high) {
    int middle = (low + high + 1) / 2;
    if (a.entry[middle].first_chunk <= blockIdx.x) low = middle;
    else high = middle - 1;
  }
  const gyre_adamw_entry &e = a.entry[low];
  long first = ((long)blockIdx.x - e.first_chunk) * GYRE_ADAMW_CHUNK;
  long last = first + GYRE_ADAMW_CHUNK < e.count ? first + GYRE_ADAMW_CHUNK : e.count;
  float factor = e.factor[0];
  float rate1 = 1.f / e.correction1, rate2 = 1.f / e.correction2;
  bool wide = (((unsigned long)e.parameter | (unsigned long)e.m | (unsigned long)e.v) & 15) == 0 &&
              is_wide(e.gradient);
  gyre_array shadow = {e.shadow, GYRE_BF16, 0};
  gyre_array parameter = {e.parameter, GYRE_F32, 0}, m = {e.m, GYRE_F32, 0}, v = {e.v, GYRE_F32, 0};
  for (long i = first + threadIdx.x * 8; i < last; i += blockDim.x * 8) {
    float p[8], g[8], s[8], q[8];
    load8(parameter, i, last, wide, p);
    load8(e.gradient, i, last, wide, g);
    load8(m, i, last, wide, s);
    load8(v, i, last, wide, q);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float d = g[j] * factor;
      s[j] = e.beta1 * s[j] + e.rest1 * d;
      q[j] = e.beta2 * q[j] + e.rest2 * d * d;
      float step = s[j] * rate1 / (sqrtf(q[j] * rate2) + e.epsilon);
      p[j] -= e.learning_rate * (e.weight_decay * p[j] + step);
    }
    store8(parameter, i, last, wide, p);
    if (present(shadow)) store8(shadow, i, last, wide, p);
    store8(m, i, last, wide, s);
    store8(v, i, last, wide, q);
  }
}

GYRE_KERNEL momentum(gyre_momentum_args a) {
  float factor = a.factor[0];
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < a.count;
       i += (long)gridDim.x * blockDim.x) {
    float p = a.p_in[i];
    float g = load(a.gradient, i) * factor + a.weight_decay * p;
    float m = a.momentum * a.m_in[i] + g;
    a.p[i] = p - a.learning_rate * (a.nesterov ? g + a.momentum * m : m);
    a.m[i] = m;
  }
}
