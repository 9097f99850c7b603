// A described cell whose units do not mix: token by token with a thread a unit, or, with GYRE_CHANNELS
// and at most three states, all tokens of a block at once by Newton's method. The code made for the cell comes before this file:
//
//     STATES, INPUTS, PARAMETERS, OUTPUT, *_TILES, cell_initial, cell_low, cell_high
//     forward_code(in, tile)         states, next states, parameters
//     jacobian_code(in, tile)        the same, then d next / d state
//     adjoint_code(in, tile, out)    states, d next, d states, parameters, d parameters; in: inputs, dy
#pragma once

// Unit u of row b, and where its arrays start.
struct Unit {
  long b, u, W, inputs, values;
  GYRE_DEVICE void locate(const gyre_described_args &a, long row, long unit) {
    b = row, u = unit, W = a.widths[0];
    inputs = b * a.tokens * a.width + u, values = b * a.tokens * W + u;
  }
  GYRE_DEVICE long input(const gyre_described_args &a, long t, int i) const {
    return inputs + t * a.width + i * W;
  }
  GYRE_DEVICE long at(long t) const { return values + t * W; }
  GYRE_DEVICE long state() const { return b * W + u; }
};

#ifdef GYRE_CHANNELS
#include "cell_newton.cuh"
#else

// MARK: - Token by token

enum { AHEAD = 8, AHEAD_BACK = 4 };

// Inputs of `AHEAD` tokens; the next ones are on their way while these are used.
struct Inputs {
  unsigned bits[AHEAD][INPUTS];
  int reset[AHEAD];
};
GYRE_DEVICE void read_inputs(const gyre_described_args &a, const Unit &x, long first, Inputs &v) {
#pragma unroll
  for (int j = 0; j < AHEAD; j++) {
    if (first + j >= a.tokens) continue;
    v.reset[j] = is_reset(a, x.b, first + j);
#pragma unroll
    for (int i = 0; i < INPUTS; i++) v.bits[j][i] = bits_at(a.gates, x.input(a, first + j, i));
  }
}

GYRE_KERNEL cell_units_forward(const __grid_constant__ gyre_described_args a) {
  Unit x;
  const long n = (long)blockIdx.x * blockDim.x + threadIdx.x, W = a.widths[0];
  if (n >= a.batch * W) return;
  x.locate(a, n / W, n % W);
  float tile[FORWARD_TILES];
#pragma unroll
  for (int s = 0; s < STATES; s++)
    tile[STATES + s] = load_or(a.states[s].first, x.state(), cell_initial[s]);
#pragma unroll
  for (int p = 0; p < PARAMETERS; p++) tile[2 * STATES + p] = load(a.parameters[p], x.u);
  Inputs now, later;
  read_inputs(a, x, 0, now);
  for (long first = 0; first < a.tokens; first += AHEAD) {
    read_inputs(a, x, first + AHEAD, later);
#pragma unroll
    for (int j = 0; j < AHEAD; j++) {
      if (first + j >= a.tokens) break;
      float in[INPUTS];
#pragma unroll
      for (int i = 0; i < INPUTS; i++) in[i] = number(a.gates, now.bits[j][i]);
#pragma unroll
      for (int s = 0; s < STATES; s++)
        tile[s] = now.reset[j] ? cell_initial[s] : tile[STATES + s];
      forward_code(in, tile);
#pragma unroll
      for (int s = 0; s < STATES; s++)
        if (present(a.states[s].history))
          store(a.states[s].history, x.at(first + j), tile[STATES + s]);
    }
    now = later;
  }
#pragma unroll
  for (int s = 0; s < STATES; s++) store(a.states[s].last, x.state(), tile[STATES + s]);
}

struct Past {
  unsigned bits[AHEAD_BACK][INPUTS], dy[AHEAD_BACK], before[AHEAD_BACK][STATES];
  int reset[AHEAD_BACK];
};
// Tokens last, last - 1, ...
GYRE_DEVICE void read_past(const gyre_described_args &a, const Unit &x, long last, Past &v) {
#pragma unroll
  for (int j = 0; j < AHEAD_BACK; j++) {
    const long t = last - j;
    if (t < 0) continue;
    v.reset[j] = is_reset(a, x.b, t);
    v.dy[j] = bits_at(a.dy, x.at(t));
#pragma unroll
    for (int i = 0; i < INPUTS; i++) v.bits[j][i] = bits_at(a.gates, x.input(a, t, i));
#pragma unroll
    for (int s = 0; s < STATES; s++)
      v.before[j][s] = t > 0 ? bits_at(a.states[s].history, x.at(t - 1)) : 0u;
  }
}

GYRE_KERNEL cell_units_backward(const __grid_constant__ gyre_described_args a) {
  Unit x;
  const long n = (long)blockIdx.x * blockDim.x + threadIdx.x, W = a.widths[0];
  if (n >= a.batch * W) return;
  x.locate(a, n / W, n % W);
  float tile[ADJOINT_TILES] = {}, start[STATES], carry[STATES];
#pragma unroll
  for (int s = 0; s < STATES; s++) {
    carry[s] = load_or(a.states[s].first, x.state(), 0.f);
    start[s] = load_or(a.states[s].start, x.state(), cell_initial[s]);
  }
#pragma unroll
  for (int p = 0; p < PARAMETERS; p++) tile[3 * STATES + p] = load(a.parameters[p], x.u);
  Past now, earlier;
  read_past(a, x, a.tokens - 1, now);
  for (long last = a.tokens - 1; last >= 0; last -= AHEAD_BACK) {
    read_past(a, x, last - AHEAD_BACK, earlier);
#pragma unroll
    for (int j = 0; j < AHEAD_BACK; j++) {
      const long t = last - j;
      if (t < 0) break;
      float in[INPUTS + 1], out[INPUTS];
#pragma unroll
      for (int i = 0; i < INPUTS; i++) in[i] = number(a.gates, now.bits[j][i]);
      in[INPUTS] = number(a.dy, now.dy[j]);
#pragma unroll
      for (int s = 0; s < STATES; s++) {
        tile[s] = now.reset[j] ? cell_initial[s]
                  : t > 0      ? number(a.states[s].history, now.before[j][s])
                               : start[s];
        tile[STATES + s] = carry[s];
      }
      adjoint_code(in, tile, out);
#pragma unroll
      for (int s = 0; s < STATES; s++) carry[s] = now.reset[j] ? 0.f : tile[2 * STATES + s];
#pragma unroll
      for (int i = 0; i < INPUTS; i++) store(a.dgates, x.input(a, t, i), out[i]);
    }
    now = earlier;
  }
#pragma unroll
  for (int s = 0; s < STATES; s++)
    if (present(a.states[s].last)) store(a.states[s].last, x.state(), carry[s]);
#pragma unroll
  for (int p = 0; p < PARAMETERS; p++)
    a.gradients[p][x.state()] = tile[3 * STATES + PARAMETERS + p];
}

#endif
