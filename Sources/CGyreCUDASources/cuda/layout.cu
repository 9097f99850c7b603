// Copies between layouts. Bytes move as they are, in the widest unit that divides everything.
#include "prelude.cuh"

template <typename Unit> GYRE_DEVICE void copy_units(const gyre_runs_args &a) {
  const Unit *x = (const Unit *)a.x.data + a.x_offset;
  Unit *y = (Unit *)a.y.data + a.y_offset;
  long count = a.outer * a.run;
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < count;
       i += (long)gridDim.x * blockDim.x) {
    long o, j;
    if (count >> 32) {
      o = i / a.run, j = i % a.run;
    } else {
      o = (unsigned)i / (unsigned)a.run, j = (unsigned)i % (unsigned)a.run;
    }
    y[o * a.y_step + j] = x[o * a.x_step + j];
  }
}

GYRE_KERNEL copy_runs(gyre_runs_args a) {
  switch (a.unit) {
    case 16: copy_units<uint4>(a); break;
    case 8: copy_units<uint2>(a); break;
    case 4: copy_units<unsigned>(a); break;
    case 2: copy_units<unsigned short>(a); break;
    default: copy_units<unsigned char>(a);
  }
}

GYRE_KERNEL __launch_bounds__(256) copies(const __grid_constant__ gyre_copies_args a) {
  begin_early();
  const char *x = (const char *)a.x[blockIdx.y];
  char *y = (char *)a.y[blockIdx.y];
  const long bytes = a.bytes[blockIdx.y], step = (long)gridDim.x * blockDim.x;
  const long first = (long)blockIdx.x * blockDim.x + threadIdx.x;
  const long wide = (((unsigned long)x | (unsigned long)y) & 15) == 0 ? bytes / 16 : 0;
  for (long i = first; i < wide; i += 4 * step) {
    uint4 v[4];
#pragma unroll
    for (int u = 0; u < 4; u++)
      if (i + u * step < wide) v[u] = ((const uint4 *)x)[i + u * step];
#pragma unroll
    for (int u = 0; u < 4; u++)
      if (i + u * step < wide) ((uint4 *)y)[i + u * step] = v[u];
  }
  for (long i = wide * 16 + first; i < bytes; i += step) y[i] = x[i];
}

// The same element by element: converts, and adds where asked.
GYRE_KERNEL convert_runs(gyre_runs_args a) {
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < a.outer * a.run;
       i += (long)gridDim.x * blockDim.x) {
    long o = i / a.run, j = i % a.run;
    long at = a.y_offset + o * a.y_step + j;
    float x = load(a.x, a.x_offset + o * a.x_step + j);
    store(a.y, at, a.adds ? load(a.y, at) + x : x);
  }
}

template <typename Unit> GYRE_DEVICE void permute_units(const gyre_permute_args &a) {
  const Unit *x = (const Unit *)a.x;
  Unit *y = (Unit *)a.y;
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < a.count;
       i += (long)gridDim.x * blockDim.x) {
    long rest = i, at = 0;
    for (int d = a.rank - 1; d >= 0; d--) {
      long next = rest / a.shape[d];
      at += (rest - next * a.shape[d]) * a.stride[d];
      rest = next;
    }
    y[i] = x[at];
  }
}

GYRE_KERNEL permute(gyre_permute_args a) {
  switch (a.unit) {
    case 16: permute_units<uint4>(a); break;
    case 8: permute_units<uint2>(a); break;
    case 4: permute_units<unsigned>(a); break;
    case 2: permute_units<unsigned short>(a); break;
    default: permute_units<unsigned char>(a);
  }
}

// A 32 × 32 tile through shared memory, so that both sides move whole lines. Block (32, 8).
template <typename Unit> GYRE_DEVICE void transpose_tiles(const gyre_transpose_args &a) {
  __shared__ Unit tile[32][33];
  long across = (a.columns + 31) / 32, down = (a.rows + 31) / 32;
  for (long t = blockIdx.x; t < a.batch * across * down; t += gridDim.x) {
    long b = t / (across * down), r = t / across % down * 32, c = t % across * 32;
    const Unit *x = (const Unit *)a.x + b * a.rows * a.columns;
    Unit *y = (Unit *)a.y + b * a.rows * a.columns;
    for (int i = threadIdx.y; i < 32; i += 8) {
      if (r + i < a.rows && c + threadIdx.x < a.columns)
        tile[i][threadIdx.x] = x[(r + i) * a.columns + c + threadIdx.x];
    }
    __syncthreads();
    for (int i = threadIdx.y; i < 32; i += 8) {
      if (c + i < a.columns && r + threadIdx.x < a.rows)
        y[(c + i) * a.rows + r + threadIdx.x] = tile[threadIdx.x][i];
    }
    __syncthreads();
  }
}
GYRE_KERNEL transpose(gyre_transpose_args a) {
  if (a.unit == 2) transpose_tiles<unsigned short>(a);
  else transpose_tiles<unsigned>(a);
}
