// Variants: TOKENS=1,8
// What members of a population add to a product, the noise made where it is used. The two members of a pair
// lie side by side in lists: they share their numbers.
#include "evolution_numbers.cuh"

#define EACH(j) _Pragma("unroll") for (int j = 0; j < 8; j++)
#define ROWS (PAIR * TOKENS)
#define THREADS (TOKENS == 1 ? 256 : 128)
constexpr int MOST_RANK = 64;

// Numbers 4 i to 4 i + 7 of a pair that is not its neighbour's: rare, and so not written out everywhere.
struct Eight {
  float c[8];
};
__device__ __noinline__ Eight eight_apart(const Numbers n, unsigned i) {
  Eight e;
  n.four(i, e.c), n.four(i + 1, e.c + 4);
  return e;
}

// A block's rows: two members, TOKENS of their tokens.
struct Block {
  const gyre_low_rank_noise_args &a;
  const Pair pair;
  const long first, from;
  GYRE_DEVICE Block(const gyre_low_rank_noise_args &a)
      : a(a), pair(a.members, (long)blockIdx.x * PAIR, a.members_count),
        first((long)blockIdx.x * PAIR), from((long)blockIdx.y * TOKENS) {}
  GYRE_DEVICE bool is_row(int i) const {
    return first + i / TOKENS < a.members_count && from + i % TOKENS < a.each;
  }
  // Rows that are not there read the first one's.
  GYRE_DEVICE long row(int i) const {
    return is_row(i) ? (first + i / TOKENS) * a.each + from + i % TOKENS : first * a.each + from;
  }
  // Eight numbers of list entry m: those of entry 0 where the two share them.
  GYRE_DEVICE void take(int m, unsigned i, float (&n)[8]) const {
    const Numbers numbers(a.noise, a.noise.leaf, pair.at(m));
    if (m == 0) {
      numbers.four(i, n), numbers.four(i + 1, n + 4);
    } else if (!pair.shares) {
      const Eight other = eight_apart(numbers, i);
      EACH(j) n[j] = other.c[j];
    }
  }
};

// x . B of the block's rows, from number `start` on: this warp's part, in lane 0.
template <bool HALF>
GYRE_DEVICE void dots(const Block &b, unsigned start, float (&sums)[ROWS]) {
  const int inputs = (int)b.a.inputs;
#pragma unroll
  for (int i = 0; i < ROWS; i++) sums[i] = 0.f;
#pragma unroll(TOKENS == 1 ? 2 : 1)
  for (int k = threadIdx.x * 8; k < inputs; k += blockDim.x * 8) {
    uint4 x[ROWS];
    if (HALF) {
#pragma unroll
      for (int i = 0; i < ROWS; i++) x[i] = ((const uint4 *)b.a.x.data)[(b.row(i) * inputs + k) >> 3];
    }
    float n[8];
#pragma unroll
    for (int m = 0; m < PAIR; m++) {
      b.take(m, (start + k) >> 2, n);
#pragma unroll
      for (int t = 0; t < TOKENS; t++) {
        const int i = m * TOKENS + t;
        float wide[8];
        if (HALF) {
          const unsigned w[4] = {x[i].x, x[i].y, x[i].z, x[i].w};
          // A permutation, for the multipliers are busy with the generator.
          EACH(j) wide[j] = __uint_as_float(
              j & 1 ? w[j / 2] & 0xffff0000u : __byte_perm(w[j / 2], 0, 0x1044));
        } else {
          load8(b.a.x, b.row(i) * inputs + k, wide);
        }
        EACH(j) sums[i] += wide[j] * n[j];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < ROWS; i++) sums[i] = warp_sum(sums[i]);
}

// RANKS ranks at a time. Sizes are multiples of eight, arrays wide, of bfloat16 where HALF.
template <int RANKS, bool HALF> GYRE_DEVICE void add_noise(const gyre_low_rank_noise_args &a) {
  __shared__ float parts[THREADS / 32][ROWS], z[MOST_RANK][ROWS];
  const Block b(a);
  const int inputs = (int)a.inputs, outputs = (int)a.outputs;
  const int warp = threadIdx.x >> 5, warps = blockDim.x >> 5;

  // z = s down up x . B
  for (int l = 0; l < a.rank; l++) {
    const unsigned start = a.noise.down_first + (unsigned)l * inputs;
    float sums[ROWS];
    dots<HALF>(b, start, sums);
    if ((threadIdx.x & 31) == 0)
#pragma unroll
      for (int i = 0; i < ROWS; i++) parts[warp][i] = sums[i];
    __syncthreads();
    if (threadIdx.x < ROWS) {
      float sum = 0.f;
      for (int w = 0; w < warps; w++) sum += parts[w][threadIdx.x];
      z[l][threadIdx.x] = sum * a.noise.down * (a.noise.up * b.pair.sign(threadIdx.x / TOKENS));
    }
    __syncthreads();
  }

  const long left = a.each - b.from, row_bytes = a.outputs * (HALF ? 2 : element_size(a.y.dtype));
  const int tokens = (int)min((long)TOKENS, left);
  for (int l = 0; l < a.rank; l += RANKS) {
    const int ranks = min(RANKS, a.rank - l);
#pragma unroll(TOKENS == 1 && RANKS == 1 ? 2 : 1)
    for (int c = threadIdx.x * 8; c < outputs; c += blockDim.x * 8) {
      float n[RANKS][8];
#pragma unroll
      for (int m = 0; m < PAIR; m++) {
#pragma unroll
        for (int q = 0; q < RANKS; q++)
          if (RANKS == 1 || q < ranks)
            b.take(m, (a.noise.up_first + (unsigned)(l + q) * outputs + c) >> 2, n[q]);
        if (b.first + m >= a.members_count) break;
        gyre_array to = a.y;
        to.data = (char *)a.y.data + ((b.first + m) * a.each + b.from) * row_bytes;
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
          if (t >= tokens) break;
          float y[8];
          if (RANKS == 1) {
            const float factor = z[0][m * TOKENS + t];
            EACH(j) y[j] = factor * n[0][j];
          } else {
            EACH(j) y[j] = 0.f;
            if (l > 0) get8<HALF>(to, c, y);
#pragma unroll
            for (int q = 0; q < RANKS; q++) {
              if (q >= ranks) break;
              const float factor = z[l + q][m * TOKENS + t];
              EACH(j) y[j] += factor * n[q][j];
            }
          }
          put8<HALF>(to, c, y);
          to.data = (char *)to.data + row_bytes;
        }
      }
    }
  }
}

// Grid (members / 2, tokens of a member / TOKENS), whole warps up to THREADS. Rank 1 of bfloat16, any rank of
// bfloat16, any floating arrays.
#define NOISE_ENTRY(name, ranks, half)                                              \
  GYRE_KERNEL __launch_bounds__(THREADS, 4)                                   \
  low_rank_noise##name(const __grid_constant__ gyre_low_rank_noise_args a) {  \
    add_noise<ranks, half>(a);                                                \
  }
NOISE_ENTRY(_one, 1, true)
NOISE_ENTRY(_half, 2, true)
NOISE_ENTRY(_float, 2, false)
