// Four neighbouring channels a thread.
#pragma once
#include "prelude.cuh"

struct Four {
  float c[4];
};
#define EACH_CHANNEL(i) _Pragma("unroll") for (int i = 0; i < 4; i++)

GYRE_DEVICE Four zero4() {
  Four f = {{0.f, 0.f, 0.f, 0.f}};
  return f;
}
// Four elements from i on, a multiple of four; the array is aligned to 16 bytes, and bfloat16 where
// HALF.
template <bool HALF> GYRE_DEVICE Four load4(const gyre_array &a, long i) {
  Four f;
  if (!HALF && a.dtype == GYRE_F32) {
    float4 v = *(const float4 *)((const float *)a.data + i);
    f.c[0] = v.x, f.c[1] = v.y, f.c[2] = v.z, f.c[3] = v.w;
    return f;
  }
  uint2 v = *(const uint2 *)((const unsigned short *)a.data + i);
  unsigned w[2] = {v.x, v.y};
  bool is_bf16 = HALF || a.dtype == GYRE_BF16;
#pragma unroll
  for (int j = 0; j < 2; j++) {
    f.c[2 * j] = is_bf16 ? __uint_as_float(w[j] << 16) : f16_to_float((unsigned short)w[j]);
    f.c[2 * j + 1] =
        is_bf16 ? __uint_as_float(w[j] & 0xffff0000u) : f16_to_float((unsigned short)(w[j] >> 16));
  }
  return f;
}
template <bool HALF> GYRE_DEVICE void store4(const gyre_array &a, long i, const Four &f) {
  if (!HALF && a.dtype == GYRE_F32) {
    *(float4 *)((float *)a.data + i) = make_float4(f.c[0], f.c[1], f.c[2], f.c[3]);
    return;
  }
  unsigned w[2];
  bool is_bf16 = HALF || a.dtype == GYRE_BF16;
#pragma unroll
  for (int j = 0; j < 2; j++)
    w[j] = is_bf16 ? (unsigned)float_to_bf16(f.c[2 * j]) |
                         (unsigned)float_to_bf16(f.c[2 * j + 1]) << 16
                   : (unsigned)float_to_f16(f.c[2 * j]) |
                         (unsigned)float_to_f16(f.c[2 * j + 1]) << 16;
  *(uint2 *)((unsigned short *)a.data + i) = make_uint2(w[0], w[1]);
}

// Four elements as they lie in memory: converted when they are used, they wait in half the registers.
template <bool HALF> struct Raw4 {
  Four f;
  GYRE_DEVICE Raw4() : f(zero4()) {}
  GYRE_DEVICE Raw4(const gyre_array &a, long i) : f(load4<false>(a, i)) {}
  GYRE_DEVICE Four four() const { return f; }
};
template <> struct Raw4<true> {
  uint2 v;
  GYRE_DEVICE Raw4() : v(make_uint2(0, 0)) {}
  GYRE_DEVICE Raw4(const gyre_array &a, long i) : v(*(const uint2 *)((const unsigned short *)a.data + i)) {}
  GYRE_DEVICE Four four() const {
    return {{__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u),
             __uint_as_float(v.y << 16), __uint_as_float(v.y & 0xffff0000u)}};
  }
};
