// y = x Wᵀ + s scale (x . B) A for few inputs, in one pass: what a population's low-rank maps cost is the
// writing of y. bfloat16, rank 1.
#include "evolution_numbers.cuh"
#include "mma.cuh"

constexpr int STEPS = 8, STEP = 32;  // columns of a warp

// Grid (rows / 64, columns / 256), 128 threads. A warp takes 16 rows of one member. Operands lie so that a lane
// loads and stores 16 bytes: of each 32 inputs lane t of four takes eight neighbours, in the same order of x and
// W; of each 32 columns it ends with eight neighbours, tile j holding its columns 2 j and 2 j + 1.
template <int CHUNKS> GYRE_DEVICE void narrow(const gyre_member_linear_args &a) {
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int inputs = CHUNKS * 32, outputs = (int)a.outputs;
  const long row = ((long)blockIdx.x * 4 + (threadIdx.x >> 5)) * 16;
  if (row >= a.rows) return;
  const int member = a.members[row / a.each];
  const float sign = member < 0 ? 0.f : member & 1 ? -1.f : 1.f;
  const Numbers numbers(a.noise, a.noise.leaf, member);
  const unsigned short *const from = (const unsigned short *)a.x.data + (row + g) * inputs;
  uint4 x[CHUNKS], v[CHUNKS];  // rows g and g + 8
#pragma unroll
  for (int s = 0; s < CHUNKS; s++) {
    x[s] = *(const uint4 *)(from + s * 32 + t * 8);
    v[s] = *(const uint4 *)(from + 8 * inputs + s * 32 + t * 8);
  }
  auto left = [&](int s, int half, u32 (&to)[4]) {
    to[0] = half ? x[s].z : x[s].x, to[1] = half ? v[s].z : v[s].x;
    to[2] = half ? x[s].w : x[s].y, to[3] = half ? v[s].w : v[s].y;
  };

  // z = s down up x . B: lane g makes the numbers of chunk g, column g of these products.
  float z[2];
  {
    float n[8], d[4] = {0.f, 0.f, 0.f, 0.f};
    const unsigned at = (a.noise.down_first + min(g, CHUNKS - 1) * 32 + t * 8) >> 2;
    numbers.four(at, n), numbers.four(at + 1, n + 4);
    u32 own[4];
#pragma unroll
    for (int j = 0; j < 4; j++) own[j] = pack2(n[2 * j], n[2 * j + 1]);
#pragma unroll
    for (int s = 0; s < CHUNKS; s++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        u32 operand[4];
        left(s, half, operand);
        mma(d, operand, g == s ? own[2 * half] : 0u, g == s ? own[2 * half + 1] : 0u);
      }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float sum = d[2 * i] + d[2 * i + 1];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      z[i] = sum * a.noise.down * (a.noise.up * sign);
    }
  }

  const int column = blockIdx.y * STEPS * STEP;
  // Lane g makes the numbers of step g.
  float n[8];
  const unsigned at = (a.noise.up_first + column + g * STEP + t * 8) >> 2;
  numbers.four(at, n), numbers.four(at + 1, n + 4);
#pragma unroll 2
  for (int s = 0; s < STEPS; s++) {
    const int first = column + s * STEP;
    if (first >= outputs) break;
    float d[4][4] = {};
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
      u32 low[4], high[4];
      left(k, 0, low), left(k, 1, high);
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const long from = (long)(first + (g >> 1) * 8 + j * 2 + (g & 1)) * inputs + k * 32 + t * 8;
        const uint4 w = *(const uint4 *)((const unsigned short *)a.w.data + from);
        mma(d[j], low, w.x, w.y);
        mma(d[j], high, w.z, w.w);
      }
    }
    u32 out[2][4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const float p = __shfl_sync(~0u, n[2 * j], s * 4 + t), q = __shfl_sync(~0u, n[2 * j + 1], s * 4 + t);
#pragma unroll
      for (int i = 0; i < 2; i++) out[i][j] = pack2(d[j][2 * i] + z[i] * p, d[j][2 * i + 1] + z[i] * q);
    }
    unsigned short *const to = (unsigned short *)a.y.data + (row + g) * outputs + first + t * 8;
    *(uint4 *)to = make_uint4(out[0][0], out[0][1], out[0][2], out[0][3]);
    *(uint4 *)(to + 8L * outputs) = make_uint4(out[1][0], out[1][1], out[1][2], out[1][3]);
  }
}

#define NARROW(chunks)                                                                    \
  GYRE_KERNEL __launch_bounds__(128)                                                      \
  member_linear_##chunks(const __grid_constant__ gyre_member_linear_args a) { narrow<chunks>(a); }
NARROW(1)
NARROW(2)
NARROW(3)
NARROW(4)
