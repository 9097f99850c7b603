// y = v s, z = v d and the gradients: a warp has 256 columns, a block eight rows of them at a time.
#include "prelude.cuh"

#define EACH(j) _Pragma("unroll") for (int j = 0; j < 8; j++)

// d of eight neighbouring columns from c on, which are of one head.
GYRE_DEVICE void factors(const gyre_value_scales_args &a, long c, float (&d)[8]) {
  EACH(j) d[j] = load(a.d, a.d_per_column ? c + j : c / a.size);
}

template <bool HALF> GYRE_DEVICE void forward(const gyre_value_scales_args &a) {
  const long c = (long)blockIdx.x * 256 + (threadIdx.x & 31) * 8;
  if (c >= a.columns) return;
  const long heads = a.columns / a.size, head = c / a.size;
  float d[8];
  factors(a, c, d);
  for (long r = (long)blockIdx.y * 8 + (threadIdx.x >> 5); r < a.rows; r += (long)gridDim.y * 8) {
    float v[8], y[8];
    get8<HALF>(a.v, r * a.columns + c, v);
    const float s = load(a.s, r * heads + head);
    EACH(j) y[j] = v[j] * s, v[j] *= d[j];
    put8<HALF>(a.y, r * a.columns + c, y);
    put8<HALF>(a.z, r * a.columns + c, v);
  }
}

template <bool HALF> GYRE_DEVICE void backward(const gyre_value_scales_args &a) {
  __shared__ float shared[8 * 256];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, group = (int)(a.size / 8);
  const long c = (long)blockIdx.x * 256 + lane * 8, heads = a.columns / a.size, head = c / a.size;
  const bool mine = c < a.columns;
  float sums[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f}, d[8];
  if (mine) factors(a, c, d);
  for (long r = (long)blockIdx.y * 8 + warp; r < a.rows; r += (long)gridDim.y * 8) {
    float sum = 0.f;
    if (mine) {
      const long at = r * a.columns + c;
      float v[8], dy[8], dz[8];
      get8<HALF>(a.v, at, v);
      get8<HALF>(a.y, at, dy);
      get8<HALF>(a.z, at, dz);
      const float s = load(a.s, r * heads + head);
      EACH(j) {
        sum += dy[j] * v[j];
        sums[j] += dz[j] * v[j];
        v[j] = dy[j] * s + dz[j] * d[j];
      }
      put8<HALF>(a.dv, at, v);
    }
    // Lanes of a head are neighbours; all lanes of a warp take part.
    for (int o = group / 2; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
    if (mine && (lane & (group - 1)) == 0) store(a.ds, r * heads + head, sum);
  }
  EACH(j) shared[warp * 256 + lane * 8 + j] = sums[j];
  __syncthreads();
  const long column = (long)blockIdx.x * 256 + threadIdx.x;
  float sum = 0.f;
#pragma unroll
  for (int w = 0; w < 8; w++) sum += shared[w * 256 + threadIdx.x];
  if (column < a.columns) a.sums[blockIdx.y * a.columns + column] = sum;
}

GYRE_KERNEL __launch_bounds__(256) value_scales(gyre_value_scales_args a) {
  if (is_half(a.v)) forward<true>(a);
  else forward<false>(a);
}
GYRE_KERNEL __launch_bounds__(256) value_scales_backward(gyre_value_scales_args a) {
  if (is_half(a.v) && is_half(a.y) && is_half(a.z)) backward<true>(a);
  else backward<false>(a);
}
