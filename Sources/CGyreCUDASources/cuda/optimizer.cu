// Optimiser steps in place.
#include "prelude.cuh"

// A learning rate as a control has it: in doubles, like the host's.
GYRE_DEVICE float step_rate(double rate, double scale, const gyre_step_control *control) {
  return control ? (float)__dmul_rn(rate, __dmul_rn(control->schedule, scale)) : (float)rate;
}

// All parameters in one launch: block c takes 8192 elements of one of them. 28 bytes an
// element, and 2 where products have asked for its values in bfloat16 before.
GYRE_KERNEL adamw(gyre_adamw_args a) {
  int low = 0, high = (int)a.entries - 1;
  while (low < high) {
    int middle = (low + high + 1) / 2;
    if (a.entry[middle].first_chunk <= blockIdx.x) low = middle;
    else high = middle - 1;
  }
  const gyre_adamw_entry e = a.entry[low];
  if (e.control && e.control->taken == 0) return;
  long first = ((long)blockIdx.x - e.first_chunk) * GYRE_ADAMW_CHUNK;
  long last = first + GYRE_ADAMW_CHUNK < e.count ? first + GYRE_ADAMW_CHUNK : e.count;
  float factor = e.factor[0];
  float learning_rate = step_rate(e.learning_rate, e.scale, e.control);
  float rate1 = 1.f / (e.control ? (float)e.control->correction1 : e.correction1);
  float rate2 = 1.f / (e.control ? (float)e.control->correction2 : e.correction2);
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
      p[j] -= learning_rate * (e.weight_decay * p[j] + step);
    }
    store8(parameter, i, last, wide, p);
    if (present(shadow)) store8(shadow, i, last, wide, p);
    store8(m, i, last, wide, s);
    store8(v, i, last, wide, q);
  }
}

GYRE_KERNEL momentum(gyre_momentum_args a) {
  long first = (long)blockIdx.x * blockDim.x + threadIdx.x, step = (long)gridDim.x * blockDim.x;
  if (a.control && a.control->taken == 0) {
    if (a.p_in == a.p && a.m_in == a.m) return;
    for (long i = first; i < a.count; i += step) a.p[i] = a.p_in[i], a.m[i] = a.m_in[i];
    return;
  }
  float factor = a.factor[0];
  float learning_rate = step_rate(a.learning_rate, a.scale, a.control);
  for (long i = first; i < a.count; i += step) {
    float p = a.p_in[i];
    float g = load(a.gradient, i) * factor + a.weight_decay * p;
    float m = a.momentum * a.m_in[i] + g;
    a.p[i] = p - learning_rate * (a.nesterov ? g + a.momentum * m : m);
    a.m[i] = m;
  }
}

GYRE_DEVICE bool is_finite(double x) { return x - x == 0; }

// One thread, in doubles and without contraction: the host's arithmetic, StepRule.
GYRE_KERNEL step_decision(const __grid_constant__ gyre_decision_args a) {
  if (threadIdx.x != 0) return;
  double loss = 0;
  for (int i = 0; i < a.losses; i++) loss = __dadd_rn(loss, (double)load(a.loss[i], 0));
  loss = __ddiv_rn(loss, (double)a.losses);
  double norm = __ddiv_rn(__dsqrt_rn((double)a.squares[0]), (double)a.losses);
  double mean = a.ledger_in[0], updates = a.ledger_in[2], skips = a.ledger_in[3];
  bool known = a.ledger_in[1] != 0;
  int verdict = 0;
  if (a.spike_factor != 0 && known && a.numbers[1] != 0 && loss > __dmul_rn(a.spike_factor, mean))
    verdict = 3;
  if (!is_finite(norm)) verdict = 2;
  if (!is_finite(loss)) verdict = 1;
  if (skips >= (double)a.maximum_skips) verdict = 4;
  a.record[3] = known ? mean : 0;
  if (verdict == 0) {
    mean = known ? __dadd_rn(__dmul_rn(0.98, mean), __dmul_rn(0.02, loss)) : loss;
    known = true, updates += 1, skips = 0;
  } else {
    skips += 1;
  }
  double clip = a.clip_norm != 0 && norm > a.clip_norm ? __ddiv_rn(a.clip_norm, norm) : 1;
  a.factor[0] = (float)__ddiv_rn(clip, (double)a.losses);
  int last = (a.number_count - 3) / 2 - 1, place = (int)(updates - a.numbers[2]) - 1;
  place = 3 + 2 * (place < 0 ? 0 : place > last ? last : place);
  a.control->taken = verdict == 0 ? 1 : 0;
  a.control->schedule = a.numbers[0];
  a.control->correction1 = a.numbers[place];
  a.control->correction2 = a.numbers[place + 1];
  a.record[0] = loss, a.record[1] = norm, a.record[2] = verdict;
  double ledger[4] = {known ? mean : 0, known ? 1. : 0., updates, skips};
  for (int i = 0; i < 4; i++) a.record[4 + i] = ledger[i], a.ledger[i] = ledger[i];
}

// 8 bytes an element.
GYRE_KERNEL state_update(const __grid_constant__ gyre_update_args a) {
  const gyre_update_entry &e = a.entry[blockIdx.y];
  const float *from = a.control->taken != 0 ? e.new_value : e.old_value;
  if (from == e.out) return;
  long first = (long)blockIdx.x * blockDim.x + threadIdx.x, step = (long)gridDim.x * blockDim.x;
  if ((((unsigned long)from | (unsigned long)e.out) & 15) == 0) {
    for (long i = first; i < e.count / 4; i += step) ((float4 *)e.out)[i] = ((const float4 *)from)[i];
    first += e.count / 4 * 4;
  }
  for (long i = first; i < e.count; i += step) e.out[i] = from[i];
}
