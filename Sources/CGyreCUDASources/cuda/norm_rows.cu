// Variants: LANES=8,16,32,64,128,256
// The norms of norm.cu for rows of at most 8 · LANES · PIECES channels in eights: a row is read once, by LANES
// threads that keep it in registers, and the gradients of weight and bias are summed on the way.
//
// Group n of LANES threads takes rows n, n + G, n + 2G …, G a multiple of the rows that share a slice
// of the weight, so that its columns have one weight.
#include "prelude.cuh"

#define ROWS (256 / LANES)
#define PIECES (LANES < 32 ? 1 : 2)

struct Row {
  float v[PIECES][8];
};

GYRE_DEVICE bool is_inside(const gyre_norm_args &a, int piece) {
  return ((threadIdx.x % LANES) + piece * LANES) * 8 < a.columns;
}
GYRE_DEVICE long column(int piece) { return ((threadIdx.x % LANES) + piece * LANES) * 8; }

#define EACH_PIECE(i) \
  _Pragma("unroll") for (int i = 0; i < PIECES; i++) if (is_inside(a, i))
#define EACH_EIGHT_OF(j) _Pragma("unroll") for (int j = 0; j < 8; j++)

template <bool HALF>
GYRE_DEVICE void load_row(
    const gyre_norm_args &a, const gyre_array &from, long first, float otherwise, Row &row) {
#pragma unroll
  for (int i = 0; i < PIECES; i++) {
    if (is_inside(a, i) && present(from)) get8<HALF>(from, first + column(i), row.v[i]);
    else EACH_EIGHT_OF(j) row.v[i][j] = otherwise;
  }
}

// Sums of two numbers over the lanes of a row; every thread of the block takes part.
GYRE_DEVICE float2 row_sum(float2 x, float2 *shared) {
#pragma unroll
  for (int o = (LANES < 32 ? LANES : 32) / 2; o; o >>= 1) {
    x.x += __shfl_xor_sync(~0u, x.x, o);
    x.y += __shfl_xor_sync(~0u, x.y, o);
  }
  if (LANES > 32) {
    int warp = threadIdx.x >> 5, first = threadIdx.x / LANES * (LANES / 32);
    if ((threadIdx.x & 31) == 0) shared[warp] = x;
    __syncthreads();
    x = make_float2(0.f, 0.f);
#pragma unroll
    for (int w = 0; w < LANES / 32; w++) {
      x.x += shared[first + w].x;
      x.y += shared[first + w].y;
    }
    __syncthreads();
  }
  return x;
}

GYRE_DEVICE float gate_value(const gyre_norm_args &a, float z) {
  if (a.gate_function == GYRE_GATE_PLAIN) return z;
  float s = quick_sigmoid(z);
  return a.gate_function == GYRE_GATE_SILU ? z * s : s;
}
GYRE_DEVICE float gate_slope(const gyre_norm_args &a, float z) {
  float s = quick_sigmoid(z);
  return a.gate_function == GYRE_GATE_SILU ? s * (1.f + z * (1.f - s)) : s * (1.f - s);
}

// x becomes (x - mean) * scale; the scale.
GYRE_DEVICE float normalize(const gyre_norm_args &a, Row &x, float2 *shared) {
  float mean = 0.f;
  if (a.kind == GYRE_NORM_LAYER) {
    float sum = 0.f;
    EACH_PIECE(i) EACH_EIGHT_OF(j) sum += x.v[i][j];
    mean = row_sum(make_float2(sum, 0.f), shared).x / a.columns;
  }
  float square = 0.f;
  EACH_PIECE(i) EACH_EIGHT_OF(j) {
    x.v[i][j] -= mean;
    square += x.v[i][j] * x.v[i][j];
  }
  square = row_sum(make_float2(square, 0.f), shared).x;
  if (a.kind != GYRE_NORM_L2) square /= a.columns;
  float scale = 1.f / sqrtf(square + a.epsilon);
  EACH_PIECE(i) EACH_EIGHT_OF(j) x.v[i][j] *= scale;
  return scale;
}

// Eight elements a piece as they lie in memory, on their way while the row before is worked on.
struct RawRow {
  uint4 v[PIECES];
};
GYRE_DEVICE void fetch_row(const gyre_norm_args &a, const gyre_array &from, long first, RawRow &row) {
#pragma unroll
  for (int i = 0; i < PIECES; i++) {
    row.v[i] = make_uint4(0, 0, 0, 0);
    if (is_inside(a, i)) row.v[i] = ((const uint4 *)from.data)[(first + column(i)) >> 3];
  }
}
GYRE_DEVICE void unpack(const RawRow &raw, Row &row) {
#pragma unroll
  for (int i = 0; i < PIECES; i++) {
    const unsigned w[4] = {raw.v[i].x, raw.v[i].y, raw.v[i].z, raw.v[i].w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      row.v[i][2 * j] = __uint_as_float(w[j] << 16);
      row.v[i][2 * j + 1] = __uint_as_float(w[j] & 0xffff0000u);
    }
  }
}

// As it reads when it is written and read again.
GYRE_DEVICE float stored(const gyre_array &a, float x) {
  return a.dtype == GYRE_F32    ? x
         : a.dtype == GYRE_BF16 ? bf16_to_float(float_to_bf16(x))
                                : f16_to_float(float_to_f16(x));
}

template <bool HALF> GYRE_DEVICE void forward(const gyre_norm_args &a) {
  let_next_begin();
  __shared__ float2 shared[8];
  int group = threadIdx.x / LANES;
  long mine = (long)blockIdx.x * ROWS + group, step = (long)gridDim.x * ROWS;
  long at = mine * a.columns % a.period, steps = (a.rows - (long)blockIdx.x * ROWS + step - 1) / step;
  Row weight, bias;
  if (a.each) {
    // A sequence's own: a group takes rows that follow each other.
    steps = (a.rows + step - 1) / step;
    mine *= steps, step = 1;
  } else {
    load_row<false>(a, a.weight, at, 1.f, weight);
    load_row<false>(a, a.bias, at, 0.f, bias);
  }
  const gyre_array &second = a.gate ? a.z : a.added;
  RawRow next, next_second;
  if (HALF) {
    long start = mine < a.rows ? mine * a.columns : 0;
    fetch_row(a, a.x, start, next);
    if (present(second)) fetch_row(a, second, start, next_second);
  }
  for (long n = 0; n < steps; n++) {
    long r = mine + n * step, first = r * a.columns;
    bool is_row = r < a.rows;
    if (a.each && is_row && (n == 0 || r % a.each == 0)) {
      load_row<false>(a, a.weight, r / a.each * a.weight.stride, 1.f, weight);
      load_row<false>(a, a.bias, r / a.each * a.bias.stride, 0.f, bias);
    }
    if (!is_row) first = 0;
    Row x, z;
    if (HALF) {
      unpack(next, x);
      if (present(second)) unpack(next_second, z);
      long after = n + 1 < steps && r + step < a.rows ? (r + step) * a.columns : 0;
      fetch_row(a, a.x, after, next);
      if (present(second)) fetch_row(a, second, after, next_second);
    } else {
      load_row<HALF>(a, a.x, first, 0.f, x);
      if (present(second)) load_row<HALF>(a, second, first, 0.f, z);
    }
    if (present(a.added)) {
      EACH_PIECE(i) EACH_EIGHT_OF(j) x.v[i][j] = stored(a.sum, x.v[i][j] + z.v[i][j]);
      if (is_row) EACH_PIECE(i) put8<HALF>(a.sum, first + column(i), x.v[i]);
    }
    if (a.gate) {
      EACH_PIECE(i) EACH_EIGHT_OF(j) z.v[i][j] = gate_value(a, z.v[i][j]);
      if (a.gate == GYRE_GATE_BEFORE) EACH_PIECE(i) EACH_EIGHT_OF(j) x.v[i][j] *= z.v[i][j];
    }
    normalize(a, x, shared);
    if (!is_row) continue;
    EACH_PIECE(i) {
      EACH_EIGHT_OF(j) {
        x.v[i][j] = x.v[i][j] * weight.v[i][j] + bias.v[i][j];
        if (a.gate == GYRE_GATE_AFTER) x.v[i][j] *= z.v[i][j];
      }
      put8<HALF>(a.y, first + column(i), x.v[i]);
    }
  }
}

// Sums over rows, of this block's where one slice of the weight serves all: [splits, period].
GYRE_DEVICE void store_sums(const gyre_norm_args &a, const Row &sum, float *to) {
  __shared__ float shared[256 * 8];
  gyre_array out = {to, GYRE_F32, 0};
  int group = threadIdx.x / LANES;
  if (a.period != a.columns) {
    long first = ((long)blockIdx.x * ROWS + group) * a.columns;
    EACH_PIECE(i) store8(out, first + column(i), sum.v[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < PIECES; i++) {
    EACH_EIGHT_OF(j) shared[j * 256 + threadIdx.x] = sum.v[i][j];
    __syncthreads();
    for (int n = threadIdx.x; n < LANES * 8; n += 256) {
      int lane = n % LANES, j = n / LANES;
      float s = 0.f;
#pragma unroll
      for (int g = 0; g < ROWS; g++) s += shared[j * 256 + g * LANES + lane];
      long c = (long)(lane + i * LANES) * 8 + j;
      if (c < a.columns) to[(long)blockIdx.x * a.columns + c] = s;
    }
    __syncthreads();
  }
}

template <bool HALF> GYRE_DEVICE void backward(const gyre_norm_args &a) {
  __shared__ float2 shared[8];
  int group = threadIdx.x / LANES;
  long mine = (long)blockIdx.x * ROWS + group, step = (long)gridDim.x * ROWS;
  long at = mine * a.columns % a.period;
  Row weight, dweight, dbias;
  load_row<false>(a, a.weight, at, 1.f, weight);
#pragma unroll
  for (int i = 0; i < PIECES; i++) EACH_EIGHT_OF(j) dweight.v[i][j] = dbias.v[i][j] = 0.f;
  float count = a.kind == GYRE_NORM_L2 ? 1.f : (float)a.columns;
  for (long r0 = (long)blockIdx.x * ROWS; r0 < a.rows; r0 += step) {
    long r = r0 + group, first = r * a.columns;
    bool is_row = r < a.rows;
    if (!is_row) first = 0;
    Row x, z, d;
    load_row<HALF>(a, a.x, first, 0.f, x);
    load_row<HALF>(a, a.dy, first, 0.f, d);
    if (present(a.dy_more)) {
      load_row<HALF>(a, a.dy_more, first, 0.f, z);
      EACH_PIECE(i) EACH_EIGHT_OF(j) d.v[i][j] += z.v[i][j];
    }
    if (present(a.dsum)) load_row<HALF>(a, a.dsum, first, 0.f, z);
    if (a.gate) load_row<HALF>(a, a.z, first, 0.f, z);
    if (a.gate == GYRE_GATE_BEFORE)
      EACH_PIECE(i) EACH_EIGHT_OF(j) x.v[i][j] *= gate_value(a, z.v[i][j]);
    float scale = normalize(a, x, shared);
    // d becomes the gradient of the normalised row.
    float2 sums = make_float2(0.f, 0.f);
    EACH_PIECE(i) EACH_EIGHT_OF(j) {
      float dy = d.v[i][j], gate = 1.f;
      if (a.gate == GYRE_GATE_AFTER) {
        gate = gate_value(a, z.v[i][j]);
        z.v[i][j] = dy * x.v[i][j] * weight.v[i][j] * gate_slope(a, z.v[i][j]);
      }
      if (is_row) {
        dweight.v[i][j] += dy * x.v[i][j] * gate;
        dbias.v[i][j] += dy;
      }
      d.v[i][j] = dy * weight.v[i][j] * gate;
      sums.x += d.v[i][j] * x.v[i][j];
      sums.y += d.v[i][j];
    }
    sums = row_sum(sums, shared);
    if (!is_row) continue;
    float dot = sums.x / count, center = a.kind == GYRE_NORM_LAYER ? sums.y / count : 0.f;
    EACH_PIECE(i) {
      EACH_EIGHT_OF(j) d.v[i][j] = scale * (d.v[i][j] - center - x.v[i][j] * dot);
      if (present(a.dsum)) EACH_EIGHT_OF(j) d.v[i][j] += z.v[i][j];
      if (a.gate == GYRE_GATE_BEFORE) {
        EACH_EIGHT_OF(j) {
          float gate = gate_value(a, z.v[i][j]), slope = gate_slope(a, z.v[i][j]);
          z.v[i][j] = d.v[i][j] * slope;
          d.v[i][j] *= gate;
        }
        float raw[8];
        get8<HALF>(a.x, first + column(i), raw);
        EACH_EIGHT_OF(j) z.v[i][j] *= raw[j];
      }
      put8<HALF>(a.dx, first + column(i), d.v[i]);
      if (a.gate) put8<HALF>(a.dz, first + column(i), z.v[i]);
    }
  }
  if (a.dweight) store_sums(a, dweight, a.dweight);
  if (a.dbias) store_sums(a, dbias, a.dbias);
}

GYRE_KERNEL __launch_bounds__(256) norm_rows_forward(gyre_norm_args a) {
  if (is_half(a.x) && is_half(a.z) && is_half(a.added) && is_half(a.y)) forward<true>(a);
  else forward<false>(a);
}
GYRE_KERNEL __launch_bounds__(256) norm_rows_backward(gyre_norm_args a) {
  bool is_half_in = is_half(a.x) && is_half(a.z) && is_half(a.dy) && is_half(a.dy_more) && is_half(a.dsum);
  if (is_half_in && is_half(a.dx) && is_half(a.dz)) backward<true>(a);
  else backward<false>(a);
}
