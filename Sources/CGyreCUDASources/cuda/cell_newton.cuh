// Newton's method over blocks of tokens (cell_units.cuh has the rest; the processor's kernel the
// mathematics): a block of 256 threads has GYRE_CHANNELS units, their time cut into TIME parts of EACH
// tokens. Iterates stay in registers; one scan of affine maps an iteration. Every block of tokens starts
// from the exact state that the one before ended in.
#pragma once

enum { CHANNELS = GYRE_CHANNELS, THREADS = 256, TIME = THREADS / CHANNELS, EACH = 4 };
enum { BLOCK = TIME * EACH, TEAM_WARPS = THREADS / 32, MOST_ITERATIONS = 20, S2 = STATES * STATES };
#define NEWTON_TOLERANCE 2e-5f

struct Affine {
  float A[S2], v[STATES];
};
// first, then second.
GYRE_DEVICE Affine compose(const Affine &first, const Affine &second) {
  Affine r;
#pragma unroll
  for (int i = 0; i < STATES; i++) {
    r.v[i] = second.v[i];
#pragma unroll
    for (int k = 0; k < STATES; k++) r.v[i] += second.A[i * STATES + k] * first.v[k];
#pragma unroll
    for (int j = 0; j < STATES; j++) {
      float sum = 0.f;
#pragma unroll
      for (int k = 0; k < STATES; k++)
        sum += second.A[i * STATES + k] * first.A[k * STATES + j];
      r.A[i * STATES + j] = sum;
    }
  }
  return r;
}
GYRE_DEVICE void act(const Affine &f, float (&d)[STATES]) {
  float r[STATES];
#pragma unroll
  for (int i = 0; i < STATES; i++) {
    r[i] = f.v[i];
#pragma unroll
    for (int k = 0; k < STATES; k++) r[i] += f.A[i * STATES + k] * d[k];
  }
#pragma unroll
  for (int i = 0; i < STATES; i++) d[i] = r[i];
}

struct NewtonShared {
  Affine warps[TEAM_WARPS][CHANNELS];
  float edge[TEAM_WARPS][CHANNELS][STATES];
  float carry[CHANNELS][STATES];
  float sums[32];
};

// What goes into a thread's part when `d` goes into the block: all earlier parts, in order. A barrier
// belongs between two calls.
GYRE_DEVICE void scan_parts(Affine own, float (&d)[STATES], NewtonShared &shared) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, c = threadIdx.x % CHANNELS;
#pragma unroll
  for (int o = CHANNELS; o < 32; o <<= 1) {
    Affine other;
#pragma unroll
    for (int i = 0; i < S2; i++) other.A[i] = __shfl_up_sync(~0u, own.A[i], o);
#pragma unroll
    for (int i = 0; i < STATES; i++) other.v[i] = __shfl_up_sync(~0u, own.v[i], o);
    if (lane >= o) own = compose(other, own);
  }
  if (lane >= 32 - CHANNELS) shared.warps[warp][c] = own;
  Affine other;
#pragma unroll
  for (int i = 0; i < S2; i++) other.A[i] = __shfl_up_sync(~0u, own.A[i], CHANNELS);
#pragma unroll
  for (int i = 0; i < STATES; i++) other.v[i] = __shfl_up_sync(~0u, own.v[i], CHANNELS);
  __syncthreads();
  for (int w = 0; w < warp; w++) act(shared.warps[w][c], d);
  if (lane >= CHANNELS) act(other, d);
}

GYRE_DEVICE void newton_unit(const gyre_described_args &a, Unit &x, bool &valid) {
  const long groups = (a.widths[0] + CHANNELS - 1) / CHANNELS;
  x.locate(a, blockIdx.x / groups, blockIdx.x % groups * CHANNELS + threadIdx.x % CHANNELS);
  valid = x.u < x.W;
}

// One thread a unit, for a block that Newton's method does not solve.
GYRE_DEVICE void sequential_block(
    const gyre_described_args &a, const Unit &x, long first, float (&tile)[JACOBIAN_TILES],
    float (&state)[STATES]) {
  for (long t = first; t < a.tokens && t < first + BLOCK; t++) {
    float in[INPUTS], part[FORWARD_TILES];
#pragma unroll
    for (int i = 0; i < INPUTS; i++) in[i] = load(a.gates, x.input(a, t, i));
#pragma unroll
    for (int p = 0; p < PARAMETERS; p++) part[2 * STATES + p] = tile[2 * STATES + p];
#pragma unroll
    for (int s = 0; s < STATES; s++) part[s] = is_reset(a, x.b, t) ? cell_initial[s] : state[s];
    forward_code(in, part);
#pragma unroll
    for (int s = 0; s < STATES; s++) {
      state[s] = part[STATES + s];
      if (present(a.states[s].history)) store(a.states[s].history, x.at(t), state[s]);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    cell_newton_forward(const __grid_constant__ gyre_described_args a) {
  __shared__ NewtonShared shared;
  Unit x;
  bool valid;
  newton_unit(a, x, valid);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, c = threadIdx.x % CHANNELS;
  const int part = threadIdx.x / CHANNELS;
  float tile[JACOBIAN_TILES] = {};
  if (valid)
#pragma unroll
    for (int p = 0; p < PARAMETERS; p++) tile[2 * STATES + p] = load(a.parameters[p], x.u);
  if (part == 0)
#pragma unroll
    for (int s = 0; s < STATES; s++)
      shared.carry[c][s] = valid ? load_or(a.states[s].first, x.state(), cell_initial[s]) : 0.f;
  float report[4] = {0.f, 0.f, 0.f, 0.f};

  unsigned later[EACH][INPUTS] = {};
  auto read = [&](long first, unsigned (&v)[EACH][INPUTS]) {
#pragma unroll
    for (int k = 0; k < EACH; k++) {
      const long t = first + part * EACH + k;
      if (valid && t < a.tokens)
#pragma unroll
        for (int i = 0; i < INPUTS; i++) v[k][i] = bits_at(a.gates, x.input(a, t, i));
    }
  };
  read(0, later);
  for (long first = 0; first < a.tokens; first += BLOCK) {
    __syncthreads();
    const long own = first + part * EACH;
    float carry[STATES], h[EACH][STATES] = {}, in[EACH][INPUTS];
    bool resets[EACH], used[EACH];
#pragma unroll
    for (int s = 0; s < STATES; s++) carry[s] = shared.carry[c][s];
#pragma unroll
    for (int k = 0; k < EACH; k++) {
      used[k] = valid && own + k < a.tokens;
      resets[k] = used[k] && is_reset(a, x.b, own + k);
#pragma unroll
      for (int i = 0; i < INPUTS; i++) in[k][i] = number(a.gates, later[k][i]);
      // First guess: one step from the state before the block.
#pragma unroll
      for (int s = 0; s < STATES; s++) tile[s] = resets[k] ? cell_initial[s] : carry[s];
      forward_code(in[k], tile);
#pragma unroll
      for (int s = 0; s < STATES; s++) h[k][s] = tile[STATES + s];
    }
    read(first + BLOCK, later);

    bool done = false, broken = false;
    int iterations = 0;
    float residual = 0.f;
    while (!done && !broken && iterations < MOST_ITERATIONS) {
      float before[STATES];
#pragma unroll
      for (int s = 0; s < STATES; s++) {
        before[s] = __shfl_up_sync(~0u, h[EACH - 1][s], CHANNELS);
        if (lane >= 32 - CHANNELS) shared.edge[warp][c][s] = h[EACH - 1][s];
      }
      __syncthreads();
      if (lane < CHANNELS)
#pragma unroll
        for (int s = 0; s < STATES; s++) before[s] = warp ? shared.edge[warp - 1][c][s] : carry[s];
      Affine step[EACH], all;
#pragma unroll
      for (int k = 0; k < EACH; k++) {
#pragma unroll
        for (int s = 0; s < STATES; s++)
          tile[s] = resets[k] ? cell_initial[s] : k ? h[k ? k - 1 : 0][s] : before[s];
        jacobian_code(in[k], tile);
#pragma unroll
        for (int i = 0; i < STATES; i++) {
          step[k].v[i] = used[k] ? tile[STATES + i] - h[k][i] : 0.f;
#pragma unroll
          for (int j = 0; j < STATES; j++)
            step[k].A[i * STATES + j] =
                used[k] && !resets[k] ? tile[2 * STATES + PARAMETERS + i * STATES + j] : 0.f;
        }
        all = k ? compose(all, step[k]) : step[k];
      }
      float d[STATES] = {};
      scan_parts(all, d, shared);
      float most = 0.f;
      residual = 0.f;
      bool lost = false;
#pragma unroll
      for (int k = 0; k < EACH; k++) {
        act(step[k], d);
#pragma unroll
        for (int s = 0; s < STATES; s++) {
          const float moved = h[k][s] + d[s], scale = 1.f + fabsf(moved);
          const float change = fabsf(d[s]) / scale;
          most = fmaxf(most, change);
          residual = fmaxf(residual, fabsf(step[k].v[s]) / scale);
          lost |= !(change <= 1e30f);
          if (used[k]) h[k][s] = fminf(fmaxf(moved, cell_low[s]), cell_high[s]);
        }
      }
      iterations++;
      done = !__syncthreads_or(!(most <= NEWTON_TOLERANCE));
      if (!done) broken = __syncthreads_or(lost);
    }
    if (done) {
#pragma unroll
      for (int k = 0; k < EACH; k++)
#pragma unroll
        for (int s = 0; s < STATES; s++) {
          if (used[k] && present(a.states[s].history))
            store(a.states[s].history, x.at(own + k), h[k][s]);
          if (used[k] && own + k == a.tokens - 1) store(a.states[s].last, x.state(), h[k][s]);
          if (part == TIME - 1 && k == EACH - 1) shared.carry[c][s] = h[k][s];
        }
      residual = block_max(residual, shared.sums);
    } else {
      if (part == 0 && valid) {
        sequential_block(a, x, first, tile, carry);
#pragma unroll
        for (int s = 0; s < STATES; s++) {
          shared.carry[c][s] = carry[s];
          if (first + BLOCK >= a.tokens) store(a.states[s].last, x.state(), carry[s]);
        }
      }
      residual = 0.f;
    }
    report[0] = fmaxf(report[0], (float)iterations);
    report[1] += (float)iterations;
    report[2] = fmaxf(report[2], residual);
    report[3] += done ? 0.f : 1.f;
  }
  if (threadIdx.x == 0)
    for (int i = 0; i < 4; i++) a.reports[blockIdx.x * 4 + i] = report[i];
}

// One warp: the reports of all blocks as one.
GYRE_KERNEL cell_newton_report(const __grid_constant__ gyre_described_args a) {
  float most[2] = {0.f, 0.f}, sum[2] = {0.f, 0.f};
  for (long i = threadIdx.x; i < a.blocks; i += 32)
    for (int j = 0; j < 2; j++) {
      most[j] = fmaxf(most[j], a.reports[i * 4 + 2 * j]);
      sum[j] += a.reports[i * 4 + 2 * j + 1];
    }
  const float count = (float)(a.blocks * ((a.tokens + BLOCK - 1) / BLOCK));
  for (int j = 0; j < 2; j++) {
    most[j] = warp_max(most[j]);
    sum[j] = warp_sum(sum[j]);
    if (threadIdx.x == 0) {
      store(a.report, 2 * j, most[j]);
      store(a.report, 2 * j + 1, sum[j] / count);
    }
  }
}

// The exact adjoint at the states: one transposed scan from the last token to the first, then the
// adjoint code of every token. Parts are in the order of that scan.
extern "C" __global__ void __launch_bounds__(THREADS)
    cell_newton_backward(const __grid_constant__ gyre_described_args a) {
  __shared__ NewtonShared shared;
  Unit x;
  bool valid;
  newton_unit(a, x, valid);
  const int c = threadIdx.x % CHANNELS, part = threadIdx.x / CHANNELS;
  float tile[ADJOINT_TILES] = {}, slopes[JACOBIAN_TILES] = {}, start[STATES] = {};
  if (valid) {
#pragma unroll
    for (int p = 0; p < PARAMETERS; p++)
      tile[3 * STATES + p] = slopes[2 * STATES + p] = load(a.parameters[p], x.u);
#pragma unroll
    for (int s = 0; s < STATES; s++)
      start[s] = load_or(a.states[s].start, x.state(), cell_initial[s]);
  }
  if (part == 0)
#pragma unroll
    for (int s = 0; s < STATES; s++)
      shared.carry[c][s] = valid ? load_or(a.states[s].first, x.state(), 0.f) : 0.f;
  for (long last = a.tokens - 1; last >= 0; last -= BLOCK) {
    __syncthreads();
    float in[EACH][INPUTS + 1] = {}, before[EACH][STATES] = {}, carry[STATES];
    bool used[EACH], resets[EACH];
    Affine step[EACH], all;
#pragma unroll
    for (int s = 0; s < STATES; s++) carry[s] = shared.carry[c][s];
#pragma unroll
    for (int k = 0; k < EACH; k++) {
      const long t = last - part * EACH - k;
      used[k] = valid && t >= 0;
      resets[k] = used[k] && is_reset(a, x.b, t);
      if (used[k]) {
#pragma unroll
        for (int i = 0; i < INPUTS; i++) in[k][i] = load(a.gates, x.input(a, t, i));
        in[k][INPUTS] = load(a.dy, x.at(t));
#pragma unroll
        for (int s = 0; s < STATES; s++)
          before[k][s] = resets[k] ? cell_initial[s]
                         : t > 0   ? load(a.states[s].history, x.at(t - 1))
                                   : start[s];
      }
    }
#pragma unroll
    for (int k = 0; k < EACH; k++) {
#pragma unroll
      for (int s = 0; s < STATES; s++) slopes[s] = before[k][s];
      jacobian_code(in[k], slopes);
      // Before the token: Jᵀ (cotangent after it + dy of the output).
#pragma unroll
      for (int j = 0; j < STATES; j++) {
#pragma unroll
        for (int i = 0; i < STATES; i++)
          step[k].A[j * STATES + i] =
              resets[k] || !used[k] ? 0.f : slopes[2 * STATES + PARAMETERS + i * STATES + j];
        step[k].v[j] = step[k].A[j * STATES + OUTPUT] * in[k][INPUTS];
      }
      all = k ? compose(all, step[k]) : step[k];
    }
    float d[STATES];
#pragma unroll
    for (int s = 0; s < STATES; s++) d[s] = carry[s];
    scan_parts(all, d, shared);
#pragma unroll
    for (int k = 0; k < EACH; k++) {
      const long t = last - part * EACH - k;
      float out[INPUTS];
#pragma unroll
      for (int s = 0; s < STATES; s++) {
        tile[s] = before[k][s];
        tile[STATES + s] = used[k] ? d[s] : 0.f;
      }
      if (used[k]) {
        adjoint_code(in[k], tile, out);
#pragma unroll
        for (int i = 0; i < INPUTS; i++) store(a.dgates, x.input(a, t, i), out[i]);
      }
      act(step[k], d);
      if (used[k] && t == 0)
#pragma unroll
        for (int s = 0; s < STATES; s++)
          if (present(a.states[s].last)) store(a.states[s].last, x.state(), d[s]);
    }
    if (part == TIME - 1)
#pragma unroll
      for (int s = 0; s < STATES; s++) shared.carry[c][s] = d[s];
  }
  // Sums over the parts of a unit, in order.
#pragma unroll
  for (int p = 0; p < PARAMETERS; p++) {
    float sum = tile[3 * STATES + PARAMETERS + p];
#pragma unroll
    for (int o = CHANNELS; o < 32; o <<= 1) sum += __shfl_xor_sync(~0u, sum, o);
    __syncthreads();
    if ((threadIdx.x & 31) < CHANNELS) shared.edge[threadIdx.x >> 5][c][0] = sum;
    __syncthreads();
    if (part == 0 && valid) {
      sum = 0.f;
      for (int w = 0; w < TEAM_WARPS; w++) sum += shared.edge[w][c][0];
      a.gradients[p][x.state()] = sum;
    }
  }
}
