// h[t] = A[t] h[t-1] + u[t], A block-diagonal with blocks of the token's own, at most 32 channels. The
// elements of a block's A lie in lanes beside each other, up to 32 of them, read some tokens ahead; sums go
// over the lanes that share a channel. Larger blocks: block_scan_large.cu.
// SIZE: channels that a block may have, 4 << KIND % 4. ELEMENT: of all tensors of the sequence, KIND / 4:
// float32, bfloat16, any mix.
// Variants: KIND=0..11
#include "gyre_cuda_engine_args.h"
#include "prelude.cuh"

enum {
  SIZE = 4 << KIND % 4,
  ELEMENT = KIND / 4,
  LANES = SIZE * SIZE < 32 ? SIZE * SIZE : 32,  // of a block
  GROUPS = LANES / SIZE,                        // lanes of a channel
  EACH = SIZE / GROUPS,                         // elements of A in a lane
  AHEAD = EACH <= 2 ? 16 : EACH == 8 ? 4 : 2,
};

GYRE_DEVICE unsigned raw(const gyre_array &a, long i) {
  if (ELEMENT == 0) return ((const unsigned *)a.data)[i];
  if (ELEMENT == 1) return ((const unsigned short *)a.data)[i];
  return bits_at(a, i);
}
GYRE_DEVICE float value(const gyre_array &a, unsigned bits) {
  return ELEMENT == 0 ? __uint_as_float(bits)
         : ELEMENT == 1 ? __uint_as_float(bits << 16)
                        : number(a, bits);
}
GYRE_DEVICE void put(const gyre_array &a, long i, float x) {
  if (ELEMENT == 0) ((float *)a.data)[i] = x;
  else if (ELEMENT == 1) ((unsigned short *)a.data)[i] = float_to_bf16(x);
  else store(a, i, x);
}
// EACH elements beside each other, in pieces as wide as they are.
GYRE_DEVICE void put_all(const gyre_array &a, long i, const float (&x)[EACH]) {
  if constexpr (ELEMENT == 0 && EACH % 4 == 0) {
#pragma unroll
    for (int e = 0; e < EACH; e += 4)
      ((float4 *)((float *)a.data + i))[e / 4] = make_float4(x[e], x[e + 1], x[e + 2], x[e + 3]);
  } else if constexpr (ELEMENT == 0 && EACH == 2) {
    *(float2 *)((float *)a.data + i) = make_float2(x[0], x[1]);
  } else if constexpr (ELEMENT == 1 && EACH % 2 == 0) {
#pragma unroll
    for (int e = 0; e < EACH; e += 2)
      ((unsigned *)((unsigned short *)a.data + i))[e / 2] =
          (unsigned)float_to_bf16(x[e]) | (unsigned)float_to_bf16(x[e + 1]) << 16;
  } else {
#pragma unroll
    for (int e = 0; e < EACH; e++) put(a, i + e, x[e]);
  }
}

// Where a lane is: channel i and group g of a block whose first lane is `lead`.
struct Place {
  int i, g, lead;
  bool exists;  // as a channel
  long b, row, rows, state;  // row: of the block at token 0; rows: of a token
};
GYRE_DEVICE Place place(const gyre_block_scan_args &a, int i, int g) {
  const int lane = threadIdx.x & 31;
  const long n = (long)blockIdx.x * (32 / LANES) + lane / LANES, blocks = a.blocks;
  const long b = n / blocks;
  return {i, g, lane / LANES * LANES, i < a.size && n < a.batch * blocks,
          b, b * a.tokens * blocks + n % blocks, blocks, n * a.size + i};
}
// The sum over the lanes of a channel, STEP lanes apart.
template <int STEP> GYRE_DEVICE float over_groups(float x) {
#pragma unroll
  for (int o = STEP; o < STEP * GROUPS; o *= 2) x += __shfl_xor_sync(~0u, x, o);
  return x;
}

// Tokens first, first + 1, ... or first, first - 1, ... of a lane.
struct Stretch {
  unsigned A[AHEAD][EACH], u[AHEAD], v[AHEAD];
  int reset[AHEAD];
};

// Forward a lane has rows g + GROUPS e of A and channel i: lanes beside each other read elements beside each
// other. EXACT: blocks of SIZE channels.
template <bool EXACT>
GYRE_DEVICE void read(const gyre_block_scan_args &a, const Place &x, long first, Stretch &s) {
  const int size = EXACT ? SIZE : (int)a.size;
#pragma unroll
  for (int n = 0; n < AHEAD; n++) {
    const long t = first + n, row = x.row + t * x.rows;
    const bool is_there = x.exists && t < a.tokens;
    s.reset[n] = is_there && a.reset ? a.reset[x.b * a.tokens + t] : 0;
    s.u[n] = is_there && x.g == 0 ? raw(a.u, row * size + x.i) : 0u;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      const int j = x.g + GROUPS * e;
      s.A[n][e] = is_there && j < size ? raw(a.A, (row * size + j) * size + x.i) : 0u;
    }
  }
}
template <bool EXACT> GYRE_DEVICE void forward(const gyre_block_scan_args &a) {
  const int lane = threadIdx.x & 31, size = EXACT ? SIZE : (int)a.size;
  const Place x = place(a, lane % SIZE, lane % LANES / SIZE);
  float h = x.exists ? load_or(a.h0, x.state, 0.f) : 0.f;
  Stretch now, later;
  read<EXACT>(a, x, 0, now);
  for (long first = 0; first < a.tokens; first += AHEAD) {
    read<EXACT>(a, x, first + AHEAD, later);
#pragma unroll
    for (int n = 0; n < AHEAD; n++) {
      if (first + n >= a.tokens) break;
      if (now.reset[n]) h = 0.f;
      float sum = value(a.u, now.u[n]);
#pragma unroll
      for (int e = 0; e < EACH; e++)
        sum += value(a.A, now.A[n][e]) * __shfl_sync(~0u, h, x.lead + x.g + GROUPS * e);
      h = over_groups<SIZE>(sum);
      if (x.exists && x.g == 0) put(a.h, (x.row + (first + n) * x.rows) * size + x.i, h);
    }
    now = later;
  }
  if (x.exists && x.g == 0) store(a.h_final, x.state, h);
}

// Backward a lane has EACH elements of row i of A, from column EACH g on, which lie beside each other.
template <bool EXACT>
GYRE_DEVICE void read_back(const gyre_block_scan_args &a, const Place &x, long first, Stretch &s) {
  const int size = EXACT ? SIZE : (int)a.size;
#pragma unroll
  for (int n = 0; n < AHEAD; n++) {
    const long t = first - n, row = x.row + t * x.rows, own = row * size + x.i;
    const bool is_there = x.exists && t >= 0;
    s.reset[n] = is_there && a.reset ? a.reset[x.b * a.tokens + t] : 0;
    s.u[n] = is_there ? raw(a.dh, own) : 0u;
    s.v[n] = is_there && t > 0 ? raw(a.h, own - x.rows * size) : 0u;
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      const int j = EACH * x.g + e;
      s.A[n][e] = is_there && j < size ? raw(a.A, own * size + j) : 0u;
    }
  }
}
template <bool EXACT> GYRE_DEVICE void backward(const gyre_block_scan_args &a) {
  const int lane = threadIdx.x & 31, size = EXACT ? SIZE : (int)a.size;
  const Place x = place(a, lane % LANES / GROUPS, lane % GROUPS);
  const float start = x.exists ? load_or(a.h0, x.state, 0.f) : 0.f;
  float carry = x.exists ? load_or(a.dh_final, x.state, 0.f) : 0.f;
  Stretch now, later;
  read_back<EXACT>(a, x, a.tokens - 1, now);
  for (long last = a.tokens - 1; last >= 0; last -= AHEAD) {
    read_back<EXACT>(a, x, last - AHEAD, later);
#pragma unroll
    for (int n = 0; n < AHEAD; n++) {
      const long t = last - n, own = (x.row + t * x.rows) * size + x.i;
      if (t < 0) break;
      const bool starts = now.reset[n];
      const float before = starts ? 0.f : t > 0 ? value(a.h, now.v[n]) : start;
      const float slope = value(a.dh, now.u[n]) + carry;
      if (x.exists && x.g == 0) put(a.du, own, slope);
      float sum = 0.f, products[EACH];
#pragma unroll
      for (int e = 0; e < EACH; e++) {
        const float other = __shfl_sync(~0u, slope, x.lead + (EACH * x.g + e) * GROUPS);
        sum += value(a.A, now.A[n][e]) * other;
        products[e] = other * before;
      }
      if (EXACT) {
        if (x.exists) put_all(a.dA, own * SIZE + EACH * x.g, products);
      } else {
#pragma unroll
        for (int e = 0; e < EACH; e++)
          if (x.exists && EACH * x.g + e < size) put(a.dA, own * size + EACH * x.g + e, products[e]);
      }
      // All lanes add: documents begin in some of a warp's blocks only.
      const float next = over_groups<1>(sum);
      carry = starts ? 0.f : next;
    }
    now = later;
  }
  if (x.exists && x.g == 0 && present(a.dh0)) store(a.dh0, x.state, carry);
}

GYRE_KERNEL block_scan_forward(const __grid_constant__ gyre_block_scan_args a) { forward<true>(a); }
GYRE_KERNEL block_scan_backward(const __grid_constant__ gyre_block_scan_args a) { backward<true>(a); }
GYRE_KERNEL block_scan_forward_part(const __grid_constant__ gyre_block_scan_args a) { forward<false>(a); }
GYRE_KERNEL block_scan_backward_part(const __grid_constant__ gyre_block_scan_args a) { backward<false>(a); }
