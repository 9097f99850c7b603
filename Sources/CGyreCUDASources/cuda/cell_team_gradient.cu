// Backward pass of the cells with weights in registers (cell_team.cuh). A block of sixteen warps has
// sixteen units of a head: their point-wise adjoint, then their rows of Rᵀ times the cotangents of all
// gates of the head. The weight's own gradient is one product after all tokens.
// Variants: GYRE_CELL=0..5
#include "cell_team.cuh"

enum { WARPS = 16, UNITS = 16 };
#define PITCH 20  // floats between rows of the partial sums
// The product of gruOriginal's candidate, whose operands are half as many.
enum { SECOND = CELL == GRU_ORIGINAL ? (GROUPS + 1) / 2 : 1 };

// What the forward pass left of a token, as bits. What is missing are zeros.
struct Bits {
  u32 gate[GATES], dy, h, before, cell, memory, n, n_before, m, m_before;
  int reset, is_first;
};
// And as numbers.
struct Saved {
  float gate[GATES], dy, h, before, cell, memory, n, n_before, m, m_before;
  int reset;
};

GYRE_DEVICE u32 earlier(
    const gyre_cell_team_args &a, const gyre_array &all, const gyre_array &given, const Place &p,
    long t) {
  if (t > 0) return bits_at(all, p.at(a, t - 1));
  return present(given) ? bits_at(given, p.state) : 0u;
}

GYRE_DEVICE Bits recall(const gyre_cell_team_args &a, const Place &p, long t) {
  Bits s = {};
  s.is_first = t == 0;
  s.reset = a.reset ? a.reset[p.b * a.tokens + t] : 0;
  s.dy = bits_at(a.dy, p.at(a, t));
  s.before = earlier(a, a.y, a.given[0], p, t);
  if (GATES > 1) {
#pragma unroll
    for (int i = 0; i < GATES; i++) s.gate[i] = bits_at(a.gates, p.gate(a, t, i));
  } else {
    s.h = bits_at(a.y, p.at(a, t));
  }
  if (CELL == GRU || CELL >= LSTM) s.cell = bits_at(a.cells, p.at(a, t));
  if (CELL >= LSTM) s.memory = earlier(a, a.cells, a.given[1], p, t);
  if (CELL == SLSTM) {
    s.n = bits_at(a.normalizers, p.at(a, t));
    s.m = bits_at(a.stabilizers, p.at(a, t));
    s.n_before = earlier(a, a.normalizers, a.given[2], p, t);
    s.m_before = earlier(a, a.stabilizers, a.given[3], p, t);
  }
  return s;
}

GYRE_DEVICE Saved decoded(const gyre_cell_team_args &a, const Bits &s) {
  Saved r = {};
  const bool first = s.is_first, reset = s.reset;
  auto from = [&](const gyre_array &all, const gyre_array &given, u32 bits) {
    return reset ? 0.f : first ? number(given, bits) : number(all, bits);
  };
  r.reset = s.reset;
  r.dy = number(a.dy, s.dy);
  r.before = from(a.y, a.given[0], s.before);
#pragma unroll
  for (int i = 0; i < GATES; i++) r.gate[i] = GATES > 1 ? number(a.gates, s.gate[i]) : 0.f;
  r.h = number(a.y, s.h);
  r.cell = number(a.cells, s.cell);
  r.memory = from(a.cells, a.given[1], s.memory);
  if (CELL == SLSTM) {
    r.n = number(a.normalizers, s.n);
    r.m = number(a.stabilizers, s.m);
    r.n_before = from(a.normalizers, a.given[2], s.n_before);
    r.m_before = from(a.stabilizers, a.given[3], s.m_before);
  }
  return r;
}

// Rows `first_row` on of the head's weight, transposed, as a warp multiplies them.
template <int N>
GYRE_DEVICE void load_weight(
    u32 (&weight)[N][2][1][4], const u16 *R, int first_row, int operands, int units, int u0,
    int first) {
  const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
#pragma unroll
  for (int i = 0; i < N; i++)
#pragma unroll
    for (int s = 0; s < 2; s++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int k = (first + i) * 32 + q * 8 + s * 4 + (j >> 1) * 2, u = u0 + g + (j & 1) * 8;
        const u16 *p = R + (long)(first_row + k) * units + u;
        weight[i][s][0][j] = k < operands && u < units ? (u32)p[0] | (u32)p[units] << 16 : 0u;
      }
}

// The point-wise part of a token: d of the gates' sums, what of dh does not go through R, and what GRU's
// weight gradient needs besides. `dh` is that after the token; `dc` and `dn` become those before it.
GYRE_DEVICE void retreat(
    const Saved &s, float dh, float &dc, float &dn, bool valid, float (&d)[4], float &rest,
    float &second) {
  const float g = dh + s.dy;
  if (CELL == ELMAN_TANH) d[0] = g * (1.f - s.h * s.h);
  if (CELL == ELMAN_RELU) d[0] = s.h > 0.f ? g : 0.f;
  if (CELL == LSTM) {
    const float i = s.gate[0], f = s.gate[1 % GATES], z = s.gate[2 % GATES],
                o = s.gate[3 % GATES];
    const float squashed = hyperbolic(s.cell), total = dc + g * o * (1.f - squashed * squashed);
    d[0] = total * z * i * (1.f - i);
    d[1] = total * s.memory * f * (1.f - f);
    d[2] = total * i * (1.f - z * z);
    d[3] = g * squashed * o * (1.f - o);
    dc = total * f;
  }
  if (CELL == SLSTM) {
    const float z = s.gate[2 % GATES], o = s.gate[3 % GATES], f = s.gate[1 % GATES];
    const float input = expf(s.gate[0] - s.m);
    const float forget = s.n_before == 0.f ? 0.f : expf(log_sigmoid(f) + s.m_before - s.m);
    const float n = valid ? s.n : 1.f, hidden = s.cell / n, scaled = g * o / n;
    const float c = dc + scaled, m = dn - scaled * hidden;
    d[0] = input * (z * c + m);
    d[1] = forget * (s.memory * c + s.n_before * m) * logistic(-f);
    d[2] = c * input * (1.f - z * z);
    d[3] = g * hidden * o * (1.f - o);
    dc = forget * c;
    dn = forget * m;
  }
  if (CELL == GRU || CELL == GRU_ORIGINAL) {
    const float r = s.gate[0], z = s.gate[1 % GATES], candidate = s.gate[2 % GATES];
    d[2] = g * (1.f - z) * (1.f - candidate * candidate);
    d[1] = g * (s.before - candidate) * z * (1.f - z);
    rest = g * z;
    if (CELL == GRU) d[0] = d[2] * s.cell * r * (1.f - r);
    second = CELL == GRU ? d[2] * r : r * s.before;
  }
}
// gruOriginal's reset gate, once the candidate's cotangent has gone through R.
GYRE_DEVICE void retreat_reset(const Saved &s, float gated, float (&d)[4], float &rest) {
  const float r = s.gate[0];
  d[0] = gated * s.before * r * (1.f - r);
  rest += gated * r;
}
GYRE_DEVICE void keep_gradient(
    const gyre_cell_team_args &a, const Place &p, long t, const Saved &s, const float (&d)[4],
    float second) {
#pragma unroll
  for (int i = 0; i < GATES; i++) store(a.dxw, p.gate(a, t, i), d[i]);
  store(a.previous, p.at(a, t), s.before);
  if (CELL == GRU || CELL == GRU_ORIGINAL) store(a.second, p.at(a, t), second);
}
// The cotangents of the state before the first token.
GYRE_DEVICE void finish(const gyre_cell_team_args &a, const Place &p, float dh, float dc, float dn) {
  if (present(a.final[0])) store(a.final[0], p.state, dh);
  if (present(a.final[1])) store(a.final[1], p.state, dc);
  if (present(a.final[2])) store(a.final[2], p.state, dn);
  // Raising m alone scales c and n as the cell sees them.
  if (present(a.final[3]))
    store(
        a.final[3], p.state,
        load_or(a.given[1], p.state, 0.f) * dc + load_or(a.given[2], p.state, 0.f) * dn);
}

GYRE_DEVICE void put_partial(float *partial, const float (&sum)[1][TILES][4]) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
#pragma unroll
  for (int i = 0; i < TILES; i++)
#pragma unroll
    for (int j = 0; j < 2; j++) {
      float *row = partial + (warp * ROWS + i * 8 + 2 * q + j) * PITCH;
      row[g] = sum[0][i][j];
      row[g + 8] = sum[0][i][j + 2];
    }
}
GYRE_DEVICE float total(const float *partial, int row, int unit) {
  float s = partial[row * PITCH + unit];
#pragma unroll
  for (int w = 1; w < WARPS; w++) s += partial[(w * ROWS + row) * PITCH + unit];
  return s;
}

extern "C" __global__ void __launch_bounds__(512, 1)
    cell_team_backward(const __grid_constant__ gyre_cell_team_args a) {
  __shared__ float partials[2][WARPS * ROWS * PITCH];
  const int warp = threadIdx.x >> 5, units = (int)a.units, u0 = blockIdx.x * UNITS;
  const long pair = a.first_pair + blockIdx.y, head = pair % a.heads, row0 = pair / a.heads * ROWS;
  const int rows = (int)min((long)ROWS, a.batch - row0);
  const u16 *R = (const u16 *)a.weight + head * GATES * units * units;
  const int operands = (CELL == GRU_ORIGINAL ? 2 : GATES) * units;

  u32 weight[GROUPS][2][1][4], candidate[SECOND][2][1][4];
  load_weight(weight, R, 0, operands, units, u0, warp * GROUPS);
  if (CELL == GRU_ORIGINAL)
    load_weight(candidate, R, 2 * units, units, units, u0, warp * SECOND);

  const long slots = a.last - a.first;
  const Exchange products((u16 *)a.exchange, operands, blockIdx.y, slots);
  const Exchange candidates((u16 *)a.exchange2, units, blockIdx.y, slots);
  const int unit = threadIdx.x & 15, n = threadIdx.x >> 4, u = u0 + unit;
  const bool works = n < ROWS, valid = works && n < rows && u < units;
  Place place;
  place.H = a.heads * a.units;
  place.b = row0 + n;
  place.hu = head * units + u;
  place.state = place.b * place.H + place.hu;
  float dh = 0.f, dc = 0.f, dn = 0.f;
  Bits next = {};
  if (valid) {
    dh = load_or(a.start[0], place.state, 0.f);
    dc = load_or(a.start[1], place.state, 0.f);
    dn = load_or(a.start[2], place.state, 0.f);
    next = recall(a, place, a.last - 1);
  }

  int phase = 0;
  for (long t = a.last - 1; t >= a.first; t--) {
    const long slot = t - a.first;
    const Saved s = decoded(a, next);
    float rest = 0.f, d[4] = {0.f, 0.f, 0.f, 0.f}, second = 0.f;
    if (works) {
      retreat(s, dh, dc, dn, valid, d, rest, second);
      if (CELL == GRU_ORIGINAL) {
        send(candidates, slot, n, u, d[2], valid);
        send(products, slot, n, units + u, d[1], valid);
      } else {
#pragma unroll
        for (int i = 0; i < GATES; i++)
          send(products, slot, n, i * units + u, CELL == GRU && i == 2 ? second : d[i], valid);
      }
      if (valid && slot >= 4 && (unit & 7) == 0)
#pragma unroll
        for (int i = 0; i * units < operands; i++)
          prefetch(products.place(slot - 4, n, i * units + u));
    }
    if (valid && t > a.first) next = recall(a, place, t - 1);
    if (CELL == GRU_ORIGINAL) {
      float *partial = partials[phase & 1];
      float sum[1][TILES][4] = {};
      multiply<1, SECOND>(sum, candidate, candidates, slot, warp * SECOND, rows);
      put_partial(partial, sum);
      __syncthreads();
      phase++;
      if (works) {
        retreat_reset(s, total(partial, n, unit), d, rest);
        send(products, slot, n, u, d[0], valid);
      }
    }
    if (valid) keep_gradient(a, place, t, s, d, second);
    float *partial = partials[phase & 1];
    float sum[1][TILES][4] = {};
    multiply<1, GROUPS>(sum, weight, products, slot, warp * GROUPS, rows);
    put_partial(partial, sum);
    __syncthreads();
    phase++;
    if (works) {
      dh = rest + total(partial, n, unit);
      if (s.reset) dh = dc = dn = 0.f;
    }
  }
  if (valid) finish(a, place, dh, dc, dn);
}
