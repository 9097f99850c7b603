// Products of a described cell whose units mix, for one row of the batch (cell_rows.cuh).
#pragma once

// y = W v, head by head; W is [heads or 1, rows / heads, columns / heads].
GYRE_DEVICE void row_product(
    const float *W, float *y, const float *v, long rows, long columns, int heads, bool is_shared) {
  const int lane = threadIdx.x & 31, warps = blockDim.x >> 5;
  const long R = rows / heads, C = columns / heads;
  for (long first = (threadIdx.x >> 5) * 4; first < rows; first += warps * 4) {
    float sum[4] = {};
    const float *w[4], *x[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const long r = min(first + i, rows - 1), head = r / R;
      w[i] = W + (is_shared ? r % R : r) * C;
      x[i] = v + head * C;
    }
#pragma unroll 4
    for (long c = lane; c < C; c += 32)
#pragma unroll
      for (int i = 0; i < 4; i++) sum[i] += w[i][c] * x[i][c];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      sum[i] = warp_sum(sum[i]);
      if (lane == 0 && first + i < rows) y[first + i] = sum[i];
    }
  }
}

GYRE_KERNEL cell_transpose(const __grid_constant__ gyre_cell_transpose_args a) {
  const long size = a.rows * a.columns;
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < a.heads * size;
       i += (long)gridDim.x * blockDim.x) {
    const long head = i / size, c = i % size / a.rows, r = i % a.rows;
    a.y[i] = a.x[head * size + r * a.columns + c];
  }
}
