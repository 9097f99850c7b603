// What every kernel file begins with: element types, wide loads and stores, reductions.
// Needs nothing of the toolkit's headers.
#pragma once
#include "gyre_cuda_args.h"

#define GYRE_DEVICE __device__ __forceinline__
#define GYRE_KERNEL extern "C" __global__ void
#define INFINITY __int_as_float(0x7f800000)

GYRE_DEVICE float bf16_to_float(unsigned short b) { return __uint_as_float((unsigned)b << 16); }
GYRE_DEVICE unsigned short float_to_bf16(float x) {
  unsigned short r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x));
  return r;
}
GYRE_DEVICE float f16_to_float(unsigned short h) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(h));
  return r;
}
GYRE_DEVICE unsigned short float_to_f16(float x) {
  unsigned short r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x));
  return r;
}

GYRE_DEVICE bool present(const gyre_array &a) { return a.data != nullptr; }
GYRE_DEVICE int element_size(int dtype) {
  return dtype == GYRE_F32 || dtype == GYRE_I32 ? 4
         : dtype == GYRE_BF16 || dtype == GYRE_F16 ? 2
         : dtype == GYRE_F64 || dtype == GYRE_I64 ? 8 : 1;
}

// One element of float32, bfloat16 or float16. The type is the same for the whole grid, so the branch
// costs an instruction or two.
GYRE_DEVICE float load(const gyre_array &a, long i) {
  if (a.dtype == GYRE_F32) return ((const float *)a.data)[i];
  unsigned short bits = ((const unsigned short *)a.data)[i];
  return a.dtype == GYRE_BF16 ? bf16_to_float(bits) : f16_to_float(bits);
}
GYRE_DEVICE float load_or(const gyre_array &a, long i, float otherwise) {
  return present(a) ? load(a, i) : otherwise;
}
GYRE_DEVICE void store(const gyre_array &a, long i, float x) {
  if (a.dtype == GYRE_F32) ((float *)a.data)[i] = x;
  else ((unsigned short *)a.data)[i] = a.dtype == GYRE_BF16 ? float_to_bf16(x) : float_to_f16(x);
}

// An element's bits, to be converted where it is needed: a load that is converted at once is waited for
// where it stands.
GYRE_DEVICE unsigned bits_at(const gyre_array &a, long i) {
  return a.dtype == GYRE_F32 ? ((const unsigned *)a.data)[i]
                             : (unsigned)((const unsigned short *)a.data)[i];
}
GYRE_DEVICE float number(const gyre_array &a, unsigned bits) {
  return a.dtype == GYRE_F32    ? __uint_as_float(bits)
         : a.dtype == GYRE_BF16 ? __uint_as_float(bits << 16)
                                : f16_to_float((unsigned short)bits);
}

// Whether eight elements from a multiple of eight on can be moved in 16-byte pieces.
GYRE_DEVICE bool is_wide(const gyre_array &a) {
  return ((unsigned long)a.data & 15) == 0 && a.dtype <= GYRE_F16;
}

// Eight elements from i on, a multiple of eight; the array is wide.
GYRE_DEVICE void load8(const gyre_array &a, long i, float (&x)[8]) {
  if (a.dtype == GYRE_F32) {
    const float4 *p = (const float4 *)a.data + (i >> 2);
    float4 u = p[0], v = p[1];
    x[0] = u.x, x[1] = u.y, x[2] = u.z, x[3] = u.w;
    x[4] = v.x, x[5] = v.y, x[6] = v.z, x[7] = v.w;
    return;
  }
  uint4 u = ((const uint4 *)a.data)[i >> 3];
  unsigned w[4] = {u.x, u.y, u.z, u.w};
  if (a.dtype == GYRE_BF16) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      x[2 * j] = __uint_as_float(w[j] << 16);
      x[2 * j + 1] = __uint_as_float(w[j] & 0xffff0000u);
    }
  } else {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      x[2 * j] = f16_to_float((unsigned short)w[j]);
      x[2 * j + 1] = f16_to_float((unsigned short)(w[j] >> 16));
    }
  }
}
GYRE_DEVICE void store8(const gyre_array &a, long i, const float (&x)[8]) {
  if (a.dtype == GYRE_F32) {
    float4 *p = (float4 *)a.data + (i >> 2);
    p[0] = make_float4(x[0], x[1], x[2], x[3]);
    p[1] = make_float4(x[4], x[5], x[6], x[7]);
    return;
  }
  unsigned w[4];
#pragma unroll
  for (int j = 0; j < 4; j++) {
    w[j] = a.dtype == GYRE_BF16
               ? (unsigned)float_to_bf16(x[2 * j]) | (unsigned)float_to_bf16(x[2 * j + 1]) << 16
               : (unsigned)float_to_f16(x[2 * j]) | (unsigned)float_to_f16(x[2 * j + 1]) << 16;
  }
  ((uint4 *)a.data)[i >> 3] = make_uint4(w[0], w[1], w[2], w[3]);
}

// Eight elements of a wide array, with bfloat16 known where HALF: loads that no branch parts from each
// other are on their way together.
template <bool HALF> GYRE_DEVICE void get8(const gyre_array &a, long i, float (&x)[8]) {
  if (!HALF) {
    load8(a, i, x);
    return;
  }
  uint4 u = ((const uint4 *)a.data)[i >> 3];
  unsigned w[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
  for (int j = 0; j < 4; j++) {
    x[2 * j] = __uint_as_float(w[j] << 16);
    x[2 * j + 1] = __uint_as_float(w[j] & 0xffff0000u);
  }
}
template <bool HALF> GYRE_DEVICE void put8(const gyre_array &a, long i, const float (&x)[8]) {
  if (!HALF) {
    store8(a, i, x);
    return;
  }
  unsigned w[4];
#pragma unroll
  for (int j = 0; j < 4; j++)
    w[j] = (unsigned)float_to_bf16(x[2 * j]) | (unsigned)float_to_bf16(x[2 * j + 1]) << 16;
  ((uint4 *)a.data)[i >> 3] = make_uint4(w[0], w[1], w[2], w[3]);
}
// Whether an array is bfloat16, or absent.
GYRE_DEVICE bool is_half(const gyre_array &a) { return a.dtype == GYRE_BF16 || !present(a); }

// Up to eight elements from i on; elements beyond `count` read as 0 and are not written.
GYRE_DEVICE void load8(const gyre_array &a, long i, long count, bool wide, float (&x)[8]) {
  if (wide && i + 8 <= count) {
    load8(a, i, x);
    return;
  }
#pragma unroll
  for (int j = 0; j < 8; j++) x[j] = i + j < count ? load(a, i + j) : 0.f;
}
GYRE_DEVICE void store8(
    const gyre_array &a, long i, long count, bool wide, const float (&x)[8]) {
  if (wide && i + 8 <= count) {
    store8(a, i, x);
    return;
  }
#pragma unroll
  for (int j = 0; j < 8; j++)
    if (i + j < count) store(a, i + j, x[j]);
}

// Every eighth index of a grid that covers `count` elements eight at a time.
#define GYRE_EACH_EIGHT(i, count)                                              \
  for (long i = ((long)blockIdx.x * blockDim.x + threadIdx.x) * 8; i < (count); \
       i += (long)gridDim.x * blockDim.x * 8)

GYRE_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
  return x;
}
GYRE_DEVICE float warp_max(float x) {
#pragma unroll
  for (int o = 16; o; o >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, o));
  return x;
}
// The sum over a block of whole warps, to every thread. `shared` holds 32 floats; ends with all
// threads past their reads of it.
GYRE_DEVICE float block_sum(float x, float *shared) {
  x = warp_sum(x);
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  x = warp_sum(lane < warps ? shared[lane] : 0.f);
  __syncthreads();
  return x;
}
GYRE_DEVICE float block_max(float x, float *shared) {
  x = warp_max(x);
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  x = warp_max(lane < warps ? shared[lane] : -INFINITY);
  __syncthreads();
  return x;
}

// Lets a kernel that was launched early begin with what does not depend on this one.
GYRE_DEVICE void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Until what kernels before wrote is there: in a kernel that is launched early all threads call it before they read
// or write what another kernel does.
GYRE_DEVICE void wait_for_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
GYRE_DEVICE void begin_early() {
  let_next_begin();
  wait_for_before();
}

// Within a few units in the last place, in five instructions; subnormal results are 0.
GYRE_DEVICE float quick_sigmoid(float x) {
  float e, r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * -1.4426950408889634f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.f + e));
  return r;
}

GYRE_DEVICE float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }
GYRE_DEVICE float log_sigmoid(float x) { return fminf(x, 0.f) - log1pf(expf(-fabsf(x))); }
GYRE_DEVICE float silu(float x) { return x * sigmoid(x); }
GYRE_DEVICE float silu_slope(float x) {
  float s = sigmoid(x);
  return s * (1.f + x * (1.f - s));
}
