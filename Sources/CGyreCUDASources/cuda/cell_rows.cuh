// A described cell whose units mix, token by token. The blocks of a team have some rows of the batch, a
// block has a part of every space's units; its values lie in tiles (shared memory, or memory where that
// is too small), [rows, units of the block]. The code made for the cell comes before this file:
//
//     STATES, PARAMETERS, cell_initial, state_space, parameter_space
//     forward_tile(a, i), adjoint_tile(a, i)         where a tile starts; after the last: gathered vectors
//     forward_step(a, team, t, memory), adjoint_step
#pragma once

GYRE_DEVICE float *block_memory(const gyre_described_args &a) {
  extern __shared__ float tiles[];
  return a.memory ? a.memory + (blockIdx.y * a.slices + blockIdx.x) * a.memory_stride : tiles;
}
extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    cell_rows_forward(const __grid_constant__ gyre_described_args a) {
  float *memory = block_memory(a);
  const Team team(a, memory + forward_tile(a, FORWARD_TILES));
  for (int s = 0; s < STATES; s++) {
    const int space = state_space[s];
    float *next = memory + forward_tile(a, STATES + s);
    EACH_UNIT(space)
      next[i] = load_or(a.states[s].first, v.b * a.widths[space] + v.u, cell_initial[s]);
  }
  for (int p = 0; p < PARAMETERS; p++) {
    float *values = memory + forward_tile(a, 2 * STATES + p);
    EACH_UNIT(parameter_space[p]) values[i] = load(a.parameters[p], v.u);
  }
  for (long t = a.first; t < a.last; t++) {
    for (int s = 0; s < STATES; s++) {
      float *before = memory + forward_tile(a, s), *next = memory + forward_tile(a, STATES + s);
      EACH_UNIT(state_space[s]) before[i] = is_reset(a, v.b, t) ? cell_initial[s] : next[i];
    }
    __syncthreads();
    forward_step(a, team, t, memory);
    __syncthreads();
  }
  for (int s = 0; s < STATES; s++) {
    const int space = state_space[s];
    float *next = memory + forward_tile(a, STATES + s);
    EACH_UNIT(space) store(a.states[s].last, v.b * a.widths[space] + v.u, next[i]);
  }
}
extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    cell_rows_backward(const __grid_constant__ gyre_described_args a) {
  float *memory = block_memory(a);
  const Team team(a, memory + adjoint_tile(a, ADJOINT_TILES));
  for (int s = 0; s < STATES; s++) {
    const int space = state_space[s];
    float *after = memory + adjoint_tile(a, STATES + s);
    EACH_UNIT(space) after[i] = load_or(a.states[s].first, v.b * a.widths[space] + v.u, 0.f);
  }
  for (int p = 0; p < PARAMETERS; p++) {
    const int space = parameter_space[p];
    float *values = memory + adjoint_tile(a, 3 * STATES + p);
    float *sums = memory + adjoint_tile(a, 3 * STATES + PARAMETERS + p);
    EACH_UNIT(space) {
      values[i] = load(a.parameters[p], v.u);
      // Later tokens may have been another launch.
      sums[i] = a.last < a.tokens ? a.gradients[p][v.b * a.widths[space] + v.u] : 0.f;
    }
  }
  for (long t = a.last - 1; t >= a.first; t--) {
    for (int s = 0; s < STATES; s++) {
      const long W = a.widths[state_space[s]];
      float *before = memory + adjoint_tile(a, s);
      EACH_UNIT(state_space[s])
        before[i] = is_reset(a, v.b, t) ? cell_initial[s]
                    : t > 0 ? load(a.states[s].history, (v.b * a.tokens + t - 1) * W + v.u)
                            : load_or(a.states[s].start, v.b * W + v.u, cell_initial[s]);
    }
    __syncthreads();
    adjoint_step(a, team, t, memory);
    __syncthreads();
    for (int s = 0; s < STATES; s++) {
      float *after = memory + adjoint_tile(a, STATES + s);
      const float *made = memory + adjoint_tile(a, 2 * STATES + s);
      EACH_UNIT(state_space[s]) after[i] = is_reset(a, v.b, t) ? 0.f : made[i];
    }
    __syncthreads();
  }
  for (int s = 0; s < STATES; s++) {
    const long W = a.widths[state_space[s]];
    const float *after = memory + adjoint_tile(a, STATES + s);
    if (present(a.states[s].last))
      EACH_UNIT(state_space[s]) store(a.states[s].last, v.b * W + v.u, after[i]);
  }
  for (int p = 0; p < PARAMETERS; p++) {
    const long W = a.widths[parameter_space[p]];
    const float *sums = memory + adjoint_tile(a, 3 * STATES + PARAMETERS + p);
    EACH_UNIT(parameter_space[p]) a.gradients[p][v.b * W + v.u] = sums[i];
  }
}
