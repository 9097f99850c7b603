// RMSNorm, LayerNorm, L2 normalisation and RMSNorm with an output gate, over rows; one block a row.
// The row is read from device memory once, then from the first-level cache. Sums in float32; the
// backward kernel keeps mean and scale of each row for the gradient of the weight, which sums
// columns in parts of the rows.
#include "prelude.cuh"

GYRE_DEVICE float gate(const gyre_norm_args &a, long i) {
  float z = load(a.z, i);
  return a.gate_function == GYRE_GATE_SILU ? silu(z) : a.gate_function == GYRE_GATE_PLAIN ? z : sigmoid(z);
}
GYRE_DEVICE float gate_slope(const gyre_norm_args &a, long i) {
  float z = load(a.z, i);
  if (a.gate_function == GYRE_GATE_SILU) return silu_slope(z);
  float s = sigmoid(z);
  return s * (1.f - s);
}
// What is normalised.
GYRE_DEVICE float input(const gyre_norm_args &a, long i) {
  float x = load(a.x, i);
  return a.gate == GYRE_GATE_BEFORE ? x * gate(a, i) : x;
}

struct Statistics {
  float mean, scale;
};
GYRE_DEVICE Statistics statistics(const gyre_norm_args &a, long row, float *shared) {
  Statistics s = {0.f, 0.f};
  if (a.kind == GYRE_NORM_LAYER) {
    float sum = 0.f;
    for (long c = threadIdx.x; c < a.columns; c += blockDim.x) sum += input(a, row + c);
    s.mean = block_sum(sum, shared) / a.columns;
  }
  float square = 0.f;
  for (long c = threadIdx.x; c < a.columns; c += blockDim.x) {
    float x = input(a, row + c) - s.mean;
    square += x * x;
  }
  square = block_sum(square, shared);
  if (a.kind != GYRE_NORM_L2) square /= a.columns;
  s.scale = 1.f / sqrtf(square + a.epsilon);
  return s;
}

GYRE_KERNEL norm_forward(gyre_norm_args a) {
  __shared__ float shared[32];
  for (long r = blockIdx.x; r < a.rows; r += gridDim.x) {
    long row = r * a.columns, at = row % a.period, own = a.each ? r / a.each : 0;
    Statistics s = statistics(a, row, shared);
    for (long c = threadIdx.x; c < a.columns; c += blockDim.x) {
      float y = (input(a, row + c) - s.mean) * s.scale;
      if (present(a.weight)) y *= load(a.weight, own * a.weight.stride + at + c);
      if (present(a.bias)) y += load(a.bias, own * a.bias.stride + at + c);
      if (a.gate == GYRE_GATE_AFTER) y *= gate(a, row + c);
      store(a.y, row + c, y);
    }
  }
}

GYRE_KERNEL norm_backward(gyre_norm_args a) {
  __shared__ float shared[32];
  for (long r = blockIdx.x; r < a.rows; r += gridDim.x) {
    long row = r * a.columns, at = row % a.period;
    Statistics s = statistics(a, row, shared);
    if (threadIdx.x == 0 && a.statistics) {
      a.statistics[2 * r] = s.mean;
      a.statistics[2 * r + 1] = s.scale;
    }
    float sum = 0.f, dot = 0.f;
    for (long c = threadIdx.x; c < a.columns; c += blockDim.x) {
      float x = (input(a, row + c) - s.mean) * s.scale;
      float g = load(a.dy, row + c) * load_or(a.weight, at + c, 1.f);
      if (a.gate == GYRE_GATE_AFTER) g *= gate(a, row + c);
      sum += g;
      dot += g * x;
    }
    dot = block_sum(dot, shared);
    float count = a.kind == GYRE_NORM_L2 ? 1.f : (float)a.columns;
    float center = a.kind == GYRE_NORM_LAYER ? block_sum(sum, shared) / count : 0.f;
    dot /= count;
    for (long c = threadIdx.x; c < a.columns; c += blockDim.x) {
      float x = (input(a, row + c) - s.mean) * s.scale;
      float weight = load_or(a.weight, at + c, 1.f);
      float dy = load(a.dy, row + c), g = dy * weight;
      if (a.gate == GYRE_GATE_AFTER) g *= gate(a, row + c);
      float dx = s.scale * (g - center - x * dot);
      if (a.gate == GYRE_GATE_AFTER) {
        store(a.dz, row + c, dy * x * weight * gate_slope(a, row + c));
      } else if (a.gate == GYRE_GATE_BEFORE) {
        float raw = load(a.x, row + c);
        store(a.dz, row + c, dx * raw * gate_slope(a, row + c));
        dx *= gate(a, row + c);
      }
      store(a.dx, row + c, dx);
    }
  }
}

// Gradients of weight and bias: column c of the period, part blockIdx.y of the rows.
GYRE_KERNEL norm_weight_gradient(gyre_norm_args a) {
  long c = (long)blockIdx.x * blockDim.x + threadIdx.x, part = blockIdx.y;
  if (c >= a.period) return;
  long groups = a.rows * a.columns / a.period;  // rows that share a slice of the weight
  long each = (groups + a.splits - 1) / a.splits;
  long first = part * each, last = first + each < groups ? first + each : groups;
  long per = a.period / a.columns;
  float dweight = 0.f, dbias = 0.f;
  for (long group = first; group < last; group++) {
    long r = group * per + c / a.columns, i = group * a.period + c;
    float x = (input(a, i) - a.statistics[2 * r]) * a.statistics[2 * r + 1];
    float dy = load(a.dy, i);
    dweight += dy * x * (a.gate == GYRE_GATE_AFTER ? gate(a, i) : 1.f);
    dbias += dy;
  }
  a.dweight[part * a.period + c] = dweight;
  if (a.dbias) a.dbias[part * a.period + c] = dbias;
}
