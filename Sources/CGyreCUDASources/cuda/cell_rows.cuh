// A described cell whose units mix, token by token: a block has a row of the batch, its values lie in
// tiles (shared memory, or memory where that is too small), a warp has four rows of a product at a
// time. The code made for the cell comes before this file:
//
//     STATES, PARAMETERS, cell_initial, state_space, parameter_space
//     forward_tile(a, i), adjoint_tile(a, i)      where a tile starts
//     forward_step(a, b, t, memory), adjoint_step
#pragma once

GYRE_DEVICE float *row_memory(const gyre_described_args &a) {
  extern __shared__ float tiles[];
  return a.memory ? a.memory + blockIdx.x * a.memory_stride : tiles;
}
enum { ROW_THREADS = 512 };
extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    cell_rows_forward(const __grid_constant__ gyre_described_args a) {
  float *memory = row_memory(a);
  const long b = blockIdx.x;
  for (int s = 0; s < STATES; s++) {
    const int space = state_space[s];
    float *next = memory + forward_tile(a, STATES + s);
    EACH_UNIT(u, space)
      next[u] = load_or(a.states[s].first, b * a.widths[space] + u, cell_initial[s]);
  }
  for (int p = 0; p < PARAMETERS; p++) {
    float *values = memory + forward_tile(a, 2 * STATES + p);
    EACH_UNIT(u, parameter_space[p]) values[u] = load(a.parameters[p], u);
  }
  for (long t = 0; t < a.tokens; t++) {
    const bool reset = is_reset(a, b, t);
    for (int s = 0; s < STATES; s++) {
      float *before = memory + forward_tile(a, s), *next = memory + forward_tile(a, STATES + s);
      EACH_UNIT(u, state_space[s]) before[u] = reset ? cell_initial[s] : next[u];
    }
    __syncthreads();
    forward_step(a, b, t, memory);
    __syncthreads();
  }
  for (int s = 0; s < STATES; s++) {
    const int space = state_space[s];
    float *next = memory + forward_tile(a, STATES + s);
    EACH_UNIT(u, space) store(a.states[s].last, b * a.widths[space] + u, next[u]);
  }
}
extern "C" __global__ void __launch_bounds__(ROW_THREADS)
    cell_rows_backward(const __grid_constant__ gyre_described_args a) {
  float *memory = row_memory(a);
  const long b = blockIdx.x;
  for (int s = 0; s < STATES; s++) {
    const int space = state_space[s];
    float *after = memory + adjoint_tile(a, STATES + s);
    EACH_UNIT(u, space) after[u] = load_or(a.states[s].first, b * a.widths[space] + u, 0.f);
  }
  for (int p = 0; p < PARAMETERS; p++) {
    float *values = memory + adjoint_tile(a, 3 * STATES + p);
    float *sums = memory + adjoint_tile(a, 3 * STATES + PARAMETERS + p);
    EACH_UNIT(u, parameter_space[p]) {
      values[u] = load(a.parameters[p], u);
      sums[u] = 0.f;
    }
  }
  for (long t = a.tokens - 1; t >= 0; t--) {
    const bool reset = is_reset(a, b, t);
    for (int s = 0; s < STATES; s++) {
      const long W = a.widths[state_space[s]];
      float *before = memory + adjoint_tile(a, s);
      EACH_UNIT(u, state_space[s])
        before[u] = reset  ? cell_initial[s]
                    : t > 0 ? load(a.states[s].history, (b * a.tokens + t - 1) * W + u)
                            : load_or(a.states[s].start, b * W + u, cell_initial[s]);
    }
    __syncthreads();
    adjoint_step(a, b, t, memory);
    __syncthreads();
    for (int s = 0; s < STATES; s++) {
      float *after = memory + adjoint_tile(a, STATES + s);
      const float *made = memory + adjoint_tile(a, 2 * STATES + s);
      EACH_UNIT(u, state_space[s]) after[u] = reset ? 0.f : made[u];
    }
    __syncthreads();
  }
  for (int s = 0; s < STATES; s++) {
    const long W = a.widths[state_space[s]];
    const float *after = memory + adjoint_tile(a, STATES + s);
    if (present(a.states[s].last))
      EACH_UNIT(u, state_space[s]) store(a.states[s].last, b * W + u, after[u]);
  }
  for (int p = 0; p < PARAMETERS; p++) {
    const long W = a.widths[parameter_space[p]];
    const float *sums = memory + adjoint_tile(a, 3 * STATES + PARAMETERS + p);
    EACH_UNIT(u, parameter_space[p]) a.gradients[p][b * W + u] = sums[u];
  }
}
