// The point-wise parts of Elman, GRU, LSTM and sLSTM cells between the products with the recurrent
// weight: one launch a token, one thread a unit of a row. Any size and precision; cell_team.cu keeps
// the weight on chip.
#include "gyre_cuda_engine_args.h"
#include "prelude.cuh"

enum { ELMAN_TANH, ELMAN_RELU, GRU, GRU_ORIGINAL, LSTM, SLSTM };

struct Unit {
  long b, u, H, state;  // row, unit of all heads, place in [heads, batch, units]
  long first;           // of its gates in a product with one gate
  GYRE_DEVICE Unit(const gyre_cell_args &a, long n) {
    H = a.heads * a.units;
    b = n / H;
    u = n % H;
    long head = u / a.units;
    state = (head * a.batch + b) * a.units + u % a.units;
    first = (head * a.batch + b) * a.units;
  }
  GYRE_DEVICE long sequence(const gyre_cell_args &a, long t) const {
    return (b * a.tokens + t) * H + u;
  }
  GYRE_DEVICE long gate(const gyre_cell_args &a, long t, int g, int gates) const {
    return ((b * a.tokens + t) * gates + g) * H + u;
  }
  GYRE_DEVICE long product(const gyre_cell_args &a, int g, int gates) const {
    return first * gates + g * a.units + u % a.units;
  }
};
GYRE_DEVICE bool is_reset(const gyre_cell_args &a, long b, long t) {
  return a.reset && t < a.tokens && a.reset[b * a.tokens + t];
}

GYRE_KERNEL cell_begin(gyre_cell_args a) {
  long n = (long)blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= a.batch * a.heads * a.units) return;
  Unit unit(a, n);
  bool reset = is_reset(a, unit.b, 0);
  float h = reset ? 0.f : load_or(a.h0, n, 0.f);
  a.h[unit.state] = h;
  store(a.operand, unit.state, h);
  if (a.c) a.c[unit.state] = reset ? 0.f : load_or(a.c0, n, 0.f);
  if (a.n) a.n[unit.state] = reset ? 0.f : load_or(a.n0, n, 0.f);
  if (a.m) a.m[unit.state] = reset ? 0.f : load_or(a.m0, n, 0.f);
}

GYRE_KERNEL cell_forward(gyre_cell_args a) {
  long n = (long)blockIdx.x * blockDim.x + threadIdx.x, t = a.token;
  if (n >= a.batch * a.heads * a.units) return;
  Unit unit(a, n);
  long H = unit.H;
  float before = a.h[unit.state], h, c = 0.f, norm = 0.f, most = 0.f;
  if (a.cell == ELMAN_TANH || a.cell == ELMAN_RELU) {
    float sum = load(a.xw, unit.gate(a, t, 0, 1)) + a.product[unit.product(a, 0, 1)] +
                load_or(a.bias, unit.u, 0.f);
    h = a.cell == ELMAN_TANH ? tanhf(sum) : fmaxf(sum, 0.f);
  } else if (a.cell == LSTM) {
    float g[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float sum = load(a.xw, unit.gate(a, t, i, 4)) + a.product[unit.product(a, i, 4)] +
                  load_or(a.bias, i * H + unit.u, 0.f);
      g[i] = i == 2 ? tanhf(sum) : sigmoid(sum);
      if (present(a.gates)) store(a.gates, unit.gate(a, t, i, 4), g[i]);
    }
    c = g[1] * a.c[unit.state] + g[0] * g[2];
    h = g[3] * tanhf(c);
    if (present(a.cells)) store(a.cells, unit.sequence(a, t), c);
  } else if (a.cell == SLSTM) {
    float g[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float sum = load(a.xw, unit.gate(a, t, i, 4)) + a.product[unit.product(a, i, 4)] +
                  load_or(a.bias, i * H + unit.u, 0.f);
      g[i] = i < 2 ? sum : i == 2 ? tanhf(sum) : sigmoid(sum);
      if (present(a.gates)) store(a.gates, unit.gate(a, t, i, 4), g[i]);
    }
    bool empty = a.n[unit.state] == 0.f;
    float carried = log_sigmoid(g[1]) + a.m[unit.state];
    most = empty ? g[0] : fmaxf(carried, g[0]);
    float input = expf(g[0] - most), forget = empty ? 0.f : expf(carried - most);
    c = forget * a.c[unit.state] + input * g[2];
    norm = forget * a.n[unit.state] + input;
    h = g[3] * c / norm;
    if (present(a.cells)) {
      store(a.cells, unit.sequence(a, t), c);
      store(a.normalizers, unit.sequence(a, t), norm);
      store(a.stabilizers, unit.sequence(a, t), most);
    }
  } else {
    bool original = a.cell == GRU_ORIGINAL;
    int gates = original ? 2 : 3;
    float r = sigmoid(
        load(a.xw, unit.gate(a, t, 0, 3)) + a.product[unit.product(a, 0, gates)] +
        load_or(a.bias, unit.u, 0.f));
    if (original && a.phase == 0) {
      store(a.gated, unit.state, r * before);
      return;
    }
    float z = sigmoid(
        load(a.xw, unit.gate(a, t, 1, 3)) + a.product[unit.product(a, 1, gates)] +
        load_or(a.bias, H + unit.u, 0.f));
    float inner = (original ? a.product2[unit.product(a, 0, 1)] : a.product[unit.product(a, 2, 3)]) +
                  load_or(a.bias, 2 * H + unit.u, 0.f);
    float candidate = tanhf(load(a.xw, unit.gate(a, t, 2, 3)) + (original ? inner : r * inner));
    h = (1.f - z) * candidate + z * before;
    if (present(a.gates)) {
      store(a.gates, unit.gate(a, t, 0, 3), r);
      store(a.gates, unit.gate(a, t, 1, 3), z);
      store(a.gates, unit.gate(a, t, 2, 3), candidate);
    }
    if (present(a.cells)) store(a.cells, unit.sequence(a, t), inner);
  }
  store(a.y, unit.sequence(a, t), h);
  if (t == a.tokens - 1) {
    store(a.h_final, n, h);
    if (present(a.c_final)) store(a.c_final, n, c);
    if (present(a.n_final)) store(a.n_final, n, norm);
    if (present(a.m_final)) store(a.m_final, n, most);
  }
  if (is_reset(a, unit.b, t + 1)) h = c = norm = most = 0.f;
  a.h[unit.state] = h;
  store(a.operand, unit.state, h);
  if (a.c) a.c[unit.state] = c;
  if (a.n) a.n[unit.state] = norm;
  if (a.m) a.m[unit.state] = most;
}

GYRE_KERNEL cell_backward_begin(gyre_cell_args a) {
  long n = (long)blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= a.batch * a.heads * a.units) return;
  Unit unit(a, n);
  a.dh[unit.state] = load_or(a.dh_final, n, 0.f);
  if (a.dc) a.dc[unit.state] = load_or(a.dc_final, n, 0.f);
  if (a.dn) a.dn[unit.state] = load_or(a.dn_final, n, 0.f);
}

// Leaves in dh what does not go through R; the product adds the rest.
GYRE_KERNEL cell_backward(gyre_cell_args a) {
  long n = (long)blockIdx.x * blockDim.x + threadIdx.x, t = a.token;
  if (n >= a.batch * a.heads * a.units) return;
  Unit unit(a, n);
  long at = unit.sequence(a, t);
  bool hidden = is_reset(a, unit.b, t);
  float before = hidden ? 0.f : t > 0 ? load(a.y, at - unit.H) : load_or(a.h0, n, 0.f);
  if (a.cell == GRU_ORIGINAL && a.phase == 1) {
    float r = load(a.gates, unit.gate(a, t, 0, 3)), dgated = a.dgated[unit.state];
    float dr = dgated * before * r * (1.f - r);
    store(a.dxw, unit.gate(a, t, 0, 3), dr);
    store(a.dproduct, unit.product(a, 0, 2), dr);
    a.dh[unit.state] += dgated * r;
    return;
  }
  bool shut = is_reset(a, unit.b, t + 1);
  float dh = (shut ? 0.f : a.dh[unit.state]) + load(a.dy, at), rest = 0.f;
  store(a.previous, at, before);
  if (a.cell == ELMAN_TANH || a.cell == ELMAN_RELU) {
    float h = load(a.y, at), d = a.cell == ELMAN_TANH ? dh * (1.f - h * h) : h > 0.f ? dh : 0.f;
    store(a.dxw, at, d);
    store(a.dproduct, unit.product(a, 0, 1), d);
  } else if (a.cell == LSTM) {
    float g[4], d[4];
#pragma unroll
    for (int i = 0; i < 4; i++) g[i] = load(a.gates, unit.gate(a, t, i, 4));
    float squashed = tanhf(load(a.cells, at));
    float memory = hidden ? 0.f : t > 0 ? load(a.cells, at - unit.H) : load_or(a.c0, n, 0.f);
    float total = (shut ? 0.f : a.dc[unit.state]) + dh * g[3] * (1.f - squashed * squashed);
    d[0] = total * g[2] * g[0] * (1.f - g[0]);
    d[1] = total * memory * g[1] * (1.f - g[1]);
    d[2] = total * g[0] * (1.f - g[2] * g[2]);
    d[3] = dh * squashed * g[3] * (1.f - g[3]);
    a.dc[unit.state] = total * g[1];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      store(a.dxw, unit.gate(a, t, i, 4), d[i]);
      store(a.dproduct, unit.product(a, i, 4), d[i]);
    }
  } else if (a.cell == SLSTM) {
    float g[4], d[4];
#pragma unroll
    for (int i = 0; i < 4; i++) g[i] = load(a.gates, unit.gate(a, t, i, 4));
    float memory = 0.f, norm_before = 0.f, most_before = 0.f;
    if (!hidden) {
      memory = t > 0 ? load(a.cells, at - unit.H) : load_or(a.c0, n, 0.f);
      norm_before = t > 0 ? load(a.normalizers, at - unit.H) : load_or(a.n0, n, 0.f);
      most_before = t > 0 ? load(a.stabilizers, at - unit.H) : load_or(a.m0, n, 0.f);
    }
    float most = load(a.stabilizers, at), norm = load(a.normalizers, at);
    float input = expf(g[0] - most);
    float forget = norm_before == 0.f ? 0.f : expf(log_sigmoid(g[1]) + most_before - most);
    float ratio = load(a.cells, at) / norm, scaled = dh * g[3] / norm;
    float c = (shut ? 0.f : a.dc[unit.state]) + scaled;
    float m = (shut ? 0.f : a.dn[unit.state]) - scaled * ratio;
    d[0] = input * (g[2] * c + m);
    d[1] = forget * (memory * c + norm_before * m) * sigmoid(-g[1]);
    d[2] = c * input * (1.f - g[2] * g[2]);
    d[3] = dh * ratio * g[3] * (1.f - g[3]);
    a.dc[unit.state] = forget * c;
    a.dn[unit.state] = forget * m;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      store(a.dxw, unit.gate(a, t, i, 4), d[i]);
      store(a.dproduct, unit.product(a, i, 4), d[i]);
    }
  } else {
    float r = load(a.gates, unit.gate(a, t, 0, 3)), z = load(a.gates, unit.gate(a, t, 1, 3));
    float candidate = load(a.gates, unit.gate(a, t, 2, 3));
    float dn = dh * (1.f - z) * (1.f - candidate * candidate);
    float dz = dh * (before - candidate) * z * (1.f - z);
    rest = dh * z;
    store(a.dxw, unit.gate(a, t, 1, 3), dz);
    store(a.dxw, unit.gate(a, t, 2, 3), dn);
    if (a.cell == GRU) {
      float dr = dn * load(a.cells, at) * r * (1.f - r);
      store(a.dxw, unit.gate(a, t, 0, 3), dr);
      store(a.dproduct, unit.product(a, 0, 3), dr);
      store(a.dproduct, unit.product(a, 1, 3), dz);
      store(a.dproduct, unit.product(a, 2, 3), dn * r);
      store(a.second, at, dn * r);
    } else {
      store(a.dproduct, unit.product(a, 1, 2), dz);
      store(a.dproduct2, unit.product(a, 0, 1), dn);
      store(a.second, at, r * before);
    }
  }
  a.dh[unit.state] = rest;
}

GYRE_KERNEL cell_backward_end(gyre_cell_args a) {
  long n = (long)blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= a.batch * a.heads * a.units) return;
  Unit unit(a, n);
  bool reset = is_reset(a, unit.b, 0);
  if (present(a.dh0)) store(a.dh0, n, reset ? 0.f : a.dh[unit.state]);
  if (present(a.dc0)) store(a.dc0, n, reset ? 0.f : a.dc[unit.state]);
  if (present(a.dn0)) store(a.dn0, n, reset ? 0.f : a.dn[unit.state]);
  if (present(a.dm0)) {
    // Raising m alone scales c and n as the cell sees them.
    float dm = load_or(a.c0, n, 0.f) * a.dc[unit.state] + load_or(a.n0, n, 0.f) * a.dn[unit.state];
    store(a.dm0, n, reset ? 0.f : dm);
  }
}
