// x + (y - x) * sigmoid(gate + bias): a warp has 256 columns, a block eight rows of them at a time.
#include "prelude.cuh"

#define EACH(j) _Pragma("unroll") for (int j = 0; j < 8; j++)

template <bool HALF> GYRE_DEVICE void forward(const gyre_blend_args &a) {
  long c = (long)blockIdx.x * 256 + (threadIdx.x & 31) * 8;
  if (c >= a.columns) return;
  float bias[8];
  load8(a.bias, c, bias);
  const long own = a.bias.stride;
  for (long r = (long)blockIdx.y * 8 + (threadIdx.x >> 5); r < a.rows; r += (long)gridDim.y * 8) {
    long at = r * a.columns + c;
    if (own) load8(a.bias, r / a.each * own + c, bias);
    float x[8], y[8], g[8];
    get8<HALF>(a.x, at, x);
    get8<HALF>(a.y, at, y);
    get8<HALF>(a.gate, at, g);
    EACH(j) x[j] += (y[j] - x[j]) * quick_sigmoid(g[j] + bias[j]);
    put8<HALF>(a.out, at, x);
  }
}

template <bool HALF> GYRE_DEVICE void backward(const gyre_blend_args &a) {
  __shared__ float shared[8 * 256];
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  long c = (long)blockIdx.x * 256 + lane * 8;
  float sums[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
  if (c < a.columns) {
    float bias[8];
    load8(a.bias, c, bias);
    for (long r = (long)blockIdx.y * 8 + warp; r < a.rows; r += (long)gridDim.y * 8) {
      long at = r * a.columns + c;
      float x[8], y[8], g[8], d[8];
      get8<HALF>(a.x, at, x);
      get8<HALF>(a.y, at, y);
      get8<HALF>(a.gate, at, g);
      get8<HALF>(a.dout, at, d);
      float more[8], before[8];
      if (present(a.dout_more)) get8<HALF>(a.dout_more, at, more);
      if (present(a.dy_before)) get8<HALF>(a.dy_before, at, before);
      if (present(a.dout_more)) EACH(j) d[j] += more[j];
      EACH(j) {
        float s = quick_sigmoid(g[j] + bias[j]), dg = d[j] * (y[j] - x[j]) * s * (1.f - s);
        sums[j] += dg;
        g[j] = dg;
        y[j] = d[j] * s;
        x[j] = d[j] - y[j];
      }
      if (present(a.dy_before)) EACH(j) y[j] += before[j];
      put8<HALF>(a.dx, at, x);
      put8<HALF>(a.dy, at, y);
      put8<HALF>(a.dgate, at, g);
    }
  }
  EACH(j) shared[warp * 256 + lane * 8 + j] = sums[j];
  __syncthreads();
  long mine = (long)blockIdx.x * 256 + threadIdx.x;
  float sum = 0.f;
#pragma unroll
  for (int w = 0; w < 8; w++) sum += shared[w * 256 + threadIdx.x];
  if (mine < a.columns) a.sums[blockIdx.y * a.columns + mine] = sum;
}

GYRE_KERNEL __launch_bounds__(256) blend(gyre_blend_args a) {
  if (is_half(a.x) && is_half(a.y) && is_half(a.gate)) forward<true>(a);
  else forward<false>(a);
}
GYRE_KERNEL __launch_bounds__(256) blend_backward(gyre_blend_args a) {
  bool half = is_half(a.x) && is_half(a.y) && is_half(a.gate) && is_half(a.dout);
  if (half && is_half(a.dout_more) && is_half(a.dy_before)) backward<true>(a);
  else backward<false>(a);
}
