// Forward pass of the cells with weights in registers (cell_team.cuh). A block of eight warps has all
// gates of eight units of a head; its warps share the operands. One launch goes over all tokens.
// Variants: GYRE_CELL=0..5
#include "cell_team.cuh"

enum { WARPS = 8, UNITS = 8 };
#ifndef GYRE_BLOCKS
#define GYRE_BLOCKS 2
#endif
#define PITCH 9                            // float4 between rows of the partial sums

// A unit's state.
struct Carry {
  float h, c, n, m;
};
// The point-wise part of a token: gates and the next state. What the backward pass keeps beside them is
// returned: c, or GRU's Rₙ h + bₙ. For gruOriginal only the first two gates.
GYRE_DEVICE float advance(
    Carry &s, float (&gate)[GATES], const float (&xw)[GATES], const float (&product)[4],
    const float (&bias)[GATES]) {
  float x[GATES], extra = 0.f;
#pragma unroll
  for (int i = 0; i < GATES; i++) x[i] = xw[i] + product[i] + bias[i];
  if (CELL == ELMAN_TANH) s.h = hyperbolic(x[0]);
  if (CELL == ELMAN_RELU) s.h = fmaxf(x[0], 0.f);
  if (CELL == LSTM) {
#pragma unroll
    for (int i = 0; i < GATES; i++) gate[i] = i == 2 ? hyperbolic(x[i]) : logistic(x[i]);
    s.c = extra = gate[1 % GATES] * s.c + gate[0] * gate[2 % GATES];
    s.h = gate[3 % GATES] * hyperbolic(s.c);
  }
  if (CELL == SLSTM) {
#pragma unroll
    for (int i = 0; i < GATES; i++)
      gate[i] = i < 2 ? x[i] : i == 2 ? hyperbolic(x[i]) : logistic(x[i]);
    const float carried = log_sigmoid(gate[1 % GATES]) + s.m;
    const float m = s.n == 0.f ? gate[0] : fmaxf(carried, gate[0]);
    const float input = expf(gate[0] - m), forget = s.n == 0.f ? 0.f : expf(carried - m);
    s.c = extra = forget * s.c + input * gate[2 % GATES];
    s.n = forget * s.n + input;
    s.m = m;
    s.h = gate[3 % GATES] * s.c / s.n;
  }
  if (CELL == GRU || CELL == GRU_ORIGINAL) {
    gate[0] = logistic(x[0]);
    gate[1 % GATES] = logistic(x[1 % GATES]);
  }
  if (CELL == GRU) {
    extra = product[2] + bias[2 % GATES];
    gate[2 % GATES] = hyperbolic(xw[2 % GATES] + gate[0] * extra);
    s.h = gate[2 % GATES] + gate[1 % GATES] * (s.h - gate[2 % GATES]);
  }
  return extra;
}
// The rest of gruOriginal's token, from its candidate's sum.
GYRE_DEVICE void advance_candidate(Carry &s, float (&gate)[GATES], float sum) {
  gate[2 % GATES] = hyperbolic(sum);
  s.h = gate[2 % GATES] + gate[1 % GATES] * (s.h - gate[2 % GATES]);
}

// What a token leaves behind.
GYRE_DEVICE void keep(
    const gyre_cell_team_args &a, const Place &p, long t, const Carry &s,
    const float (&gate)[GATES], float extra) {
  const long at = p.at(a, t);
  store(a.y, at, s.h);
  if (GATES > 1 && present(a.gates)) {
#pragma unroll
    for (int i = 0; i < GATES; i++) store(a.gates, p.gate(a, t, i), gate[i]);
  }
  if (present(a.cells)) store(a.cells, at, extra);
  if (CELL == SLSTM && present(a.normalizers)) {
    store(a.normalizers, at, s.n);
    store(a.stabilizers, at, s.m);
  }
  if (t + 1 < a.last) return;
  store(a.final[0], p.state, s.h);
  if (CELL >= LSTM) store(a.final[1], p.state, s.c);
  if (CELL == SLSTM) {
    store(a.final[2], p.state, s.n);
    store(a.final[3], p.state, s.m);
  }
}
// The state before the first token of a launch.
GYRE_DEVICE Carry start(const gyre_cell_team_args &a, const Place &p) {
  if (a.reset && a.reset[p.b * a.tokens + a.first]) return {0.f, 0.f, 0.f, 0.f};
  return {
      load_or(a.start[0], p.state, 0.f), load_or(a.start[1], p.state, 0.f),
      load_or(a.start[2], p.state, 0.f), load_or(a.start[3], p.state, 0.f)};
}
GYRE_DEVICE u32 weight_pair(const u16 *R, long row, int k, int units) {
  return k < units ? *(const u32 *)(R + row * units + k) : 0u;
}
enum { MT = CELL <= ELMAN_RELU ? 1 : 2 };  // weight tiles: rows 0-7 gate 2m, rows 8-15 gate 2m + 1
// Gate rows of units u0 to u0 + 7 for a warp's groups of operands.
GYRE_DEVICE void load_gates(u32 (&weight)[GROUPS][2][MT][4], const u16 *R, int units, int u0, int first) {
  const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
#pragma unroll
  for (int i = 0; i < GROUPS; i++)
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int s = 0; s < 2; s++) {
        const int k = (first + i) * 32 + q * 8 + s * 4;
        const long low = (long)(2 * m) * units + u0 + g, high = low + units;
        weight[i][s][m][0] = weight_pair(R, low, k, units);
        weight[i][s][m][2] = weight_pair(R, low, k + 2, units);
        weight[i][s][m][1] = 2 * m + 1 < GATES ? weight_pair(R, high, k, units) : 0u;
        weight[i][s][m][3] = 2 * m + 1 < GATES ? weight_pair(R, high, k + 2, units) : 0u;
      }
}

// The gates' sums over the warps, in order.
GYRE_DEVICE float4 total(const float4 *partial, int row, int unit) {
  float4 s = partial[row * PITCH + unit];
#pragma unroll
  for (int w = 1; w < WARPS; w++) {
    float4 p = partial[(w * ROWS + row) * PITCH + unit];
    s.x += p.x, s.y += p.y, s.z += p.z, s.w += p.w;
  }
  return s;
}

extern "C" __global__ void __launch_bounds__(256, GYRE_BLOCKS)
    cell_team_forward(const __grid_constant__ gyre_cell_team_args a) {
  __shared__ float4 partials[2][WARPS * ROWS * PITCH];
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
  const int units = (int)a.units, u0 = blockIdx.x * UNITS;
  const long pair = a.first_pair + blockIdx.y, head = pair % a.heads, row0 = pair / a.heads * ROWS;
  const int rows = (int)min((long)ROWS, a.batch - row0);
  const long H = a.heads * a.units;
  const u16 *R = (const u16 *)a.weight + head * GATES * units * units;

  const int first = warp * GROUPS;
  u32 weight[GROUPS][2][MT][4];
  load_gates(weight, R, units, u0, first);

  const long slots = a.last - a.first;
  const Exchange states((u16 *)a.exchange, units, blockIdx.y, slots);
  const Exchange gated((u16 *)a.exchange2, units, blockIdx.y, slots);
  // One unit of one row a thread.
  const int unit = threadIdx.x & 7, n = threadIdx.x >> 3, u = u0 + unit;
  const bool works = n < ROWS, valid = works && n < rows;
  Place place;
  place.H = H, place.b = row0 + n, place.hu = head * units + u;
  place.state = place.b * H + place.hu;
  float bias[GATES];
#pragma unroll
  for (int i = 0; i < GATES; i++) bias[i] = valid ? load_or(a.bias, i * H + place.hu, 0.f) : 0.f;
  Carry s = {0.f, 0.f, 0.f, 0.f};
  u32 now[GATES] = {};
  if (valid) {
    s = start(a, place);
#pragma unroll
    for (int i = 0; i < GATES; i++) now[i] = bits_at(a.xw, place.gate(a, a.first, i));
  }
  if (works) send(states, 0, n, u, s.h, valid);

  int phase = 0;
  for (long t = a.first; t < a.last; t++) {
    const long slot = t - a.first;
    u32 later[GATES] = {};
    int reset_next = 0;
    if (valid && t + 1 < a.last) {
#pragma unroll
      for (int i = 0; i < GATES; i++)
        later[i] = bits_at(a.xw, place.gate(a, t + 1, i));
      if (a.reset) reset_next = a.reset[place.b * a.tokens + t + 1];
      if (slot + 4 < slots && unit == 0) prefetch(states.place(slot + 4, n, u));
    }
    float4 *partial = partials[phase & 1];
    float sum[MT][TILES][4] = {};
    if (CELL == GRU_ORIGINAL) {
      // The reset gate comes before the candidate's product.
      u32 early[GROUPS][2][1][4];
      float part[1][TILES][4] = {};
#pragma unroll
      for (int i = 0; i < GROUPS; i++)
#pragma unroll
        for (int k = 0; k < 8; k++) early[i][k >> 2][0][k & 3] = weight[i][k >> 2][0][k & 3];
      multiply<1, GROUPS>(part, early, states, slot, first, rows);
#pragma unroll
      for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sum[0][i][j] = part[0][i][j];
    } else {
      multiply<MT, GROUPS>(sum, weight, states, slot, first, rows);
    }
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
      for (int j = 0; j < 2; j++)
        partial[(warp * ROWS + i * 8 + 2 * q + j) * PITCH + g] = make_float4(
            sum[0][i][j], sum[0][i][j + 2], MT > 1 ? sum[MT - 1][i][j] : 0.f,
            MT > 1 ? sum[MT - 1][i][j + 2] : 0.f);
    __syncthreads();
    phase++;

    float gate[GATES] = {}, xw[GATES], extra = 0.f, before = s.h;
#pragma unroll
    for (int i = 0; i < GATES; i++) xw[i] = number(a.xw, now[i]);
    if (works) {
      const float4 p = total(partial, n, unit);
      const float product[4] = {p.x, p.y, p.z, p.w};
      extra = advance(s, gate, xw, product, bias);
      if (CELL == GRU_ORIGINAL) send(gated, slot, n, u, gate[0] * before, valid);
    }
    if (CELL == GRU_ORIGINAL) {
      float4 *second = partials[phase & 1];
      u32 late[GROUPS][2][1][4];
      float part[1][TILES][4] = {};
#pragma unroll
      for (int i = 0; i < GROUPS; i++)
#pragma unroll
        for (int k = 0; k < 8; k++) late[i][k >> 2][0][k & 3] = weight[i][k >> 2][MT - 1][k & 3];
      multiply<1, GROUPS>(part, late, gated, slot, first, rows);
#pragma unroll
      for (int i = 0; i < TILES; i++)
#pragma unroll
        for (int j = 0; j < 2; j++)
          second[(warp * ROWS + i * 8 + 2 * q + j) * PITCH + g] =
              make_float4(part[0][i][j], 0.f, 0.f, 0.f);
      __syncthreads();
      phase++;
      if (works) {
        advance_candidate(s, gate, xw[2 % GATES] + total(second, n, unit).x + bias[2 % GATES]);
      }
    }
    if (works) {
      Carry kept = s;
      if (reset_next) s = {0.f, 0.f, 0.f, 0.f};
      if (t + 1 < a.last) send(states, slot + 1, n, u, s.h, valid);
      if (valid) keep(a, place, t, kept, gate, extra);
#pragma unroll
      for (int i = 0; i < GATES; i++) now[i] = later[i];
    }
  }
}
