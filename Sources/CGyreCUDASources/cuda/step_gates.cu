// Decays, step sizes and write strengths of a small projection. Threads of a block lie over up to 256 heads and,
// where there are fewer, over several rows; the gradients of bias and rate are summed on the way.
#include "prelude.cuh"

struct Place {
  long head, row, step;
  int across, down;  // heads and rows of a block
  __device__ __forceinline__ Place(const gyre_step_gates_args &a) {
    across = a.heads < 256 ? (int)a.heads : 256, down = 256 / across;
    head = (long)blockIdx.x * 256 + threadIdx.x % across;
    row = (long)blockIdx.y * down + threadIdx.x / across, step = (long)gridDim.y * down;
    if ((int)threadIdx.x >= across * down || head >= a.heads) row = a.rows;
  }
};

GYRE_DEVICE float softplus(float x) { return fmaxf(x, 0.f) + log1pf(expf(-fabsf(x))); }

GYRE_KERNEL __launch_bounds__(256) step_gates(gyre_step_gates_args a) {
  const Place p(a);
  if (p.row >= a.rows) return;
  const float bias = load(a.bias, p.head), rate = expf(load(a.log_rate, p.head));
  for (long r = p.row; r < a.rows; r += p.step) {
    const float s = softplus(load(a.z, r * a.width + p.head) + bias);
    store(a.g, r * a.heads + p.head, -rate * s);
    const float second = a.strength != 0.f
        ? a.strength * sigmoid(load(a.z, r * a.width + a.heads + p.head)) : s;
    store(a.second, r * a.heads + p.head, second);
  }
}

GYRE_KERNEL __launch_bounds__(256) step_gates_backward(gyre_step_gates_args a) {
  __shared__ float shared[2][256];
  const Place p(a);
  float of_bias = 0.f, of_rate = 0.f;
  if (p.row < a.rows) {
    const float bias = load(a.bias, p.head), rate = expf(load(a.log_rate, p.head));
    for (long r = p.row; r < a.rows; r += p.step) {
      const float x = load(a.z, r * a.width + p.head) + bias;
      const float dg = load(a.g, r * a.heads + p.head), other = load(a.second, r * a.heads + p.head);
      const float dz = ((a.strength != 0.f ? 0.f : other) - rate * dg) * sigmoid(x);
      store(a.dz, r * a.width + p.head, dz);
      of_bias += dz;
      of_rate -= dg * rate * softplus(x);
      if (a.strength == 0.f) continue;
      const long at = r * a.width + a.heads + p.head;
      const float beta = sigmoid(load(a.z, at));
      store(a.dz, at, other * a.strength * beta * (1.f - beta));
    }
  }
  shared[0][threadIdx.x] = of_bias;
  shared[1][threadIdx.x] = of_rate;
  __syncthreads();
  if ((int)threadIdx.x >= p.across || p.head >= a.heads) return;
#pragma unroll
  for (int n = 0; n < 2; n++) {
    float sum = 0.f;
    for (int d = 0; d < p.down; d++) sum += shared[n][d * p.across + threadIdx.x];
    a.sums[((long)blockIdx.y * 2 + n) * a.heads + p.head] = sum;
  }
}

// c tanh((z + b) / c) in two halves; `strength` is c.
GYRE_KERNEL capped_gates(gyre_step_gates_args a) {
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < a.rows * a.width; i += (long)gridDim.x * blockDim.x) {
    const long r = i / a.width, j = i - r * a.width, h = j < a.heads ? j : j - a.heads;
    store(j < a.heads ? a.g : a.second, r * a.heads + h, a.strength * tanhf((load(a.z, i) + load(a.bias, j)) / a.strength));
  }
}
