// Of one token of each sequence: the residual sum, its norm and RWKV's mixes of that with the token before, which
// then is this one. A block has a row, a thread eight channels or sixteen; all that it reads is on its way at once.
#include "prelude.cuh"

#define EACH(j) _Pragma("unroll") for (int j = 0; j < 8; j++)
typedef float Eight[8];

// Eight elements of a parameter: no branch parts these loads from each other, none is waited for before all began.
template <bool HALF> GYRE_DEVICE void parameter(const gyre_array &from, long c, Eight &x) {
  if (!HALF) {
    load8(from, c, x);
    return;
  }
  const float4 *p = (const float4 *)from.data + (c >> 2);
  const float4 u = p[0], v = p[1];
  x[0] = u.x, x[1] = u.y, x[2] = u.z, x[3] = u.w, x[4] = v.x, x[5] = v.y, x[6] = v.z, x[7] = v.w;
}

template <int MIXES, bool HALF>
GYRE_DEVICE void load_mixes(const gyre_normed_mixes_args &a, long c, Eight (&mix)[MIXES]) {
#pragma unroll
  for (int m = 0; m < MIXES; m++) parameter<HALF>(a.mix[m < a.mixes ? m : 0], c, mix[m]);
}

// HALF: what tokens have is bfloat16, the state and parameters float32.
template <int PIECES, int MIXES, bool HALF> GYRE_DEVICE void forward(const gyre_normed_mixes_args &a) {
  begin_early();
  __shared__ float shared[32];
  const long row = (long)blockIdx.x * a.width;
  Eight x[PIECES], before[PIECES], weight[PIECES], bias[PIECES], mix[MIXES];
  float sum = 0.f, square = 0.f;
#pragma unroll
  for (int p = 0; p < PIECES; p++) {
    const long c = (threadIdx.x + p * blockDim.x) * 8;
    EACH(j) x[p][j] = 0.f;
    if (c >= a.width) continue;
    Eight other;
    get8<HALF>(a.x, row + c, x[p]);
    get8<HALF>(a.added, row + c, other);
    parameter<HALF>(a.last, row + c, before[p]);
    parameter<HALF>(a.weight, c, weight[p]);
    parameter<HALF>(present(a.bias) ? a.bias : a.weight, c, bias[p]);
    if (PIECES == 1) load_mixes<MIXES, HALF>(a, c, mix);
    EACH(j) {
      x[p][j] += other[j];
      if (HALF) x[p][j] = bf16_to_float(float_to_bf16(x[p][j]));
      if (!present(a.bias)) bias[p][j] = 0.f;
    }
    put8<HALF>(a.sum, row + c, x[p]);
    EACH(j) sum += x[p][j];
  }
  const float mean = a.centers ? block_sum(sum, shared) / a.width : 0.f;
#pragma unroll
  for (int p = 0; p < PIECES; p++) {
    if ((threadIdx.x + p * blockDim.x) * 8 >= a.width) continue;
    EACH(j) {
      x[p][j] -= mean;
      square += x[p][j] * x[p][j];
    }
  }
  const float scale = 1.f / sqrtf(block_sum(square, shared) / a.width + a.epsilon);
#pragma unroll
  for (int p = 0; p < PIECES; p++) {
    const long c = (threadIdx.x + p * blockDim.x) * 8;
    if (c >= a.width) continue;
    if (PIECES > 1) load_mixes<MIXES, HALF>(a, c, mix);
    EACH(j) {
      x[p][j] = x[p][j] * scale * weight[p][j] + bias[p][j];
      if (HALF) x[p][j] = bf16_to_float(float_to_bf16(x[p][j]));
      before[p][j] -= x[p][j];
    }
    store8(a.last_final, row + c, x[p]);
#pragma unroll
    for (int m = 0; m < MIXES; m++) {
      EACH(j) mix[m][j] = x[p][j] + before[p][j] * mix[m][j];
      if (m < a.mixes) put8<HALF>(a.y[m], row + c, mix[m]);
    }
  }
}

GYRE_DEVICE bool is_float(const gyre_array &a) { return a.dtype == GYRE_F32; }
GYRE_DEVICE bool all_half(const gyre_normed_mixes_args &a) {
  bool all = is_half(a.x) && is_half(a.added) && is_half(a.sum);
  all = all && is_float(a.weight) && is_float(a.bias) && is_float(a.last);
  for (int m = 0; m < a.mixes; m++) all = all && is_half(a.y[m]) && is_float(a.mix[m]);
  return all;
}
#define ENTRY(NAME, PIECES)                                                                                        \
  GYRE_KERNEL __launch_bounds__(256, 2) NAME(const __grid_constant__ gyre_normed_mixes_args a) {                   \
    const bool half = all_half(a);                                                                                 \
    if (half && a.mixes == 1) forward<PIECES, 1, true>(a);                                                         \
    else if (half && a.mixes <= 6) forward<PIECES, 6, true>(a);                                                    \
    else forward<PIECES, GYRE_MIXES, false>(a);                                                                    \
  }
ENTRY(normed_mixes, 1)
ENTRY(normed_mixes_wide, 2)
