// Perturbations of a population: numbers, what they add, and members' own parameters.
#include "evolution_numbers.cuh"

#define EACH(i, count)                                                                        \
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < (count); \
       i += (long)gridDim.x * blockDim.x)

// Four numbers a thread: one call of the generator.
GYRE_KERNEL evolution_noise(const __grid_constant__ gyre_evolution_noise_args a) {
  const long quads = (a.count + 3) / 4;
  EACH(n, a.rows * quads) {
    const long r = n / quads, i = n % quads * 4;
    const int member = a.members[r];
    uint4 v = make_uint4(0, 0, 0, 0);
    if (member >= 0)
      v = philox(
          make_uint4((a.first >> 2) + (unsigned)(i >> 2), (unsigned)member >> 1, a.leaf, a.epoch),
          (unsigned)a.seed, (unsigned)(a.seed >> 32));
    const unsigned words[4] = {v.x, v.y, v.z, v.w};
    const float factor = a.is_signed && (member & 1) ? -a.factor : a.factor;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (i + j >= a.count) break;
      const unsigned w = words[j];
      const int bytes = (w & 255) + (w >> 8 & 255) + (w >> 16 & 255) + (w >> 24);
      store(a.y, r * a.count + i + j, member < 0 ? 0.f : (float)(bytes - 510) * factor);
    }
  }
}

// A block a row: the factors' products with x, then the sum. At most 64 factors at a time.
GYRE_KERNEL low_rank_add(const __grid_constant__ gyre_low_rank_add_args a) {
  __shared__ float z[64];
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
  for (long i = blockIdx.x; i < a.rows; i += gridDim.x) {
    const long member = i / a.each;
    for (long first = 0; first < a.rank || first == 0; first += 64) {
      const long ranks = min(64L, a.rank - first);
      for (long l = warp; l < ranks; l += warps) {
        const long row = (member * a.rank + first + l) * a.inputs;
        float sum = 0.f;
        if (a.tokens) {
          sum = load(a.down, row + a.tokens[i]);
        } else {
          for (long k = lane; k < a.inputs; k += 32)
            sum += load(a.x, i * a.inputs + k) * load(a.down, row + k);
          sum = warp_sum(sum);
        }
        if (lane == 0) z[l] = sum;
      }
      __syncthreads();
      for (long j = threadIdx.x; j < a.outputs; j += blockDim.x) {
        float sum = load(first ? a.y : a.base, i * a.outputs + j);
        for (long l = 0; l < ranks; l++)
          sum += z[l] * load(a.up, (member * a.rank + first + l) * a.outputs + j);
        store(a.y, i * a.outputs + j, sum);
      }
      __syncthreads();
    }
  }
}

// Any sizes, types and rank: a block a row.
GYRE_KERNEL low_rank_noise_any(const __grid_constant__ gyre_low_rank_noise_args a) {
  __shared__ float shared[32];
  for (long r = blockIdx.x; r < a.members_count * a.each; r += gridDim.x) {
    const int member = a.members[r / a.each], token = a.tokens ? a.tokens[r] : 0;
    const Numbers numbers(a.noise, a.noise.leaf, member);
    const float sign = member < 0 ? 0.f : member & 1 ? -1.f : 1.f;
    for (long l = 0; l < a.rank; l++) {
      float z = 0.f;
      const unsigned start = a.noise.down_first + (unsigned)(l * a.inputs);
      if (a.tokens) {
        z = numbers.one(start + (unsigned)token);
      } else {
        for (long k = threadIdx.x; k < a.inputs; k += blockDim.x)
          z += load(a.x, r * a.inputs + k) * numbers.one(start + (unsigned)k);
        z = block_sum(z, shared);
      }
      z *= a.noise.down * (a.noise.up * sign);
      for (long c = threadIdx.x; c < a.outputs; c += blockDim.x) {
        const long at = r * a.outputs + c;
        float y = l > 0 ? load(a.y, at) : load_or(a.base, a.tokens ? token * a.outputs + c : at, 0.f);
        y += z * numbers.one(a.noise.up_first + (unsigned)(l * a.outputs + c));
        store(a.y, at, y);
      }
    }
  }
}

// Element e of up Aᵀ down B.
GYRE_DEVICE float outer(
    const gyre_member_parameters_args &a, const Numbers &numbers, int e, int rows, int columns) {
  float sum = 0.f;
  for (int l = 0; l < a.rank; l++)
    sum += numbers.one(a.noise.up_first + (unsigned)(l * rows + e / columns)) * a.noise.up *
           (numbers.one(a.noise.down_first + (unsigned)(l * columns + e % columns)) * a.noise.down);
  return sum;
}

// Grid (any, parameters): a block takes two members, a thread four elements.
GYRE_KERNEL member_parameters(const __grid_constant__ gyre_member_parameters_args a) {
  const gyre_member_parameter &p = a.parameter[blockIdx.y];
  const int count = (int)p.count, rows = p.columns ? count / p.columns : 0;
  for (long first = (long)blockIdx.x * PAIR; first < a.members_count; first += (long)gridDim.x * PAIR) {
    const Pair pair(a.members, first, a.members_count);
    for (int e = threadIdx.x * 4; e < count; e += blockDim.x * 4) {
      float value[4], noise[4];
#pragma unroll
      for (int j = 0; j < 4; j++) value[j] = p.value[min(e + j, count - 1)];
#pragma unroll
      for (int m = 0; m < PAIR; m++) {
        if (first + m >= a.members_count) break;
        if (m == 0 || !pair.shares) {
          const Numbers numbers(a.noise, p.leaf, pair.member[m]);
          if (p.columns) {
#pragma unroll
            for (int j = 0; j < 4; j++) noise[j] = outer(a, numbers, e + j, rows, p.columns);
          } else {
            numbers.four((unsigned)e >> 2, noise);
#pragma unroll
            for (int j = 0; j < 4; j++) noise[j] = __fmul_rn(noise[j], a.scale);
          }
        }
        const float sign = pair.sign(m);
        float out[4];
        // Rounded as the noise and the sum apart are.
#pragma unroll
        for (int j = 0; j < 4; j++) out[j] = __fadd_rn(value[j], __fmul_rn(sign, noise[j]));
        float *to = p.out + (first + m) * p.count + e;
        if (count % 4 == 0) {
          *(float4 *)to = make_float4(out[0], out[1], out[2], out[3]);
        } else {
#pragma unroll
          for (int j = 0; j < 4; j++)
            if (e + j < count) to[j] = out[j];
        }
      }
    }
  }
}
