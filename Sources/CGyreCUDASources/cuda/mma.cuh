// Warp-level matrix products, asynchronous copies and bf16 for the sequence-mixer kernels.
//
// Only inline PTX of sm_80 and later; sm_90 copies whole tiles with one bulk copy. No toolkit
// header. Tiles in shared memory are row-major, their 16-byte pieces exchanged within each row
// (`at`), so that `ldmatrix` reads 8 rows of any 8 columns without a bank conflict; global records
// hold the same image.
#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

/// The storage of a bfloat16.
struct bf16 {
  u16 bits;
};

#ifdef GYRE_HOST
#include "host.h"
#else
#define DEV static __device__ __forceinline__
#define DEV_MEMBER __device__ __forceinline__
#define DEV_CONST __device__ constexpr
#define ENTRY(name, Args, threads, ...)                                                           \
  extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Args args) { \
    __VA_ARGS__;                                                                                  \
  }
#define ENTRY_BLOCKS(name, Args, threads, blocks, ...)          \
  extern "C" __global__ void __launch_bounds__(threads, blocks) \
      name(const __grid_constant__ Args args) {                 \
    __VA_ARGS__;                                                \
  }
#define SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

DEV u32 pack2(float low, float high) {
  u32 r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
DEV float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEV float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEV float lowest_bits(u32 x) {
  return __uint_as_float(x);
}
DEV u32 shared_address(const void *p) {
  return (u32)__cvta_generic_to_shared(p);
}
DEV void ldsm4(u32 (&r)[4], const u16 *p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p))
               : "memory");
}
DEV void ldsm4t(u32 (&r)[4], const u16 *p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p))
               : "memory");
}
/// An 8×8 matrix, a row in four lanes, transposed.
DEV u32 turned(u32 x) {
  u32 y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}
DEV void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/// 16 bytes from global to shared memory; zeros where `present` is false.
DEV void copy16(void *to, const void *from, bool present) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(present ? 16 : 0)
               : "memory");
}
/// Asks for the line of 128 bytes around `p`, which a load or a store will go to.
DEV void prefetch(const void *p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}
DEV void copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N>
DEV void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
#if __CUDA_ARCH__ >= 900
#define GYRE_BULK 1
DEV void barrier_init(u64 *b) {
  asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(b)) : "memory");
}
DEV void barrier_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
/// One thread: `bytes` from global memory to shared memory; `b` completes with them.
DEV void bulk_copy(void *to, const void *from, u32 bytes, u64 *b) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(b)),
               "r"(bytes)
               : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(b))
      : "memory");
}
DEV void barrier_wait(u64 *b, u32 parity) {
  u32 done = 0;
  while (!done)
    asm volatile(
        "{\n .reg .pred p;\n mbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, "
        "p;\n}"
        : "=r"(done)
        : "r"(shared_address(b)), "r"(parity)
        : "memory");
}
/// What this thread wrote to or read of shared memory comes before what products and the copy engine do after the
/// next barrier.
DEV void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#else
#define GYRE_BULK 0
DEV void proxy_fence() {}
DEV void barrier_init(u64 *) {}
DEV void barrier_fence() {}
DEV void bulk_copy(void *, const void *, u32, u64 *) {}
DEV void barrier_wait(u64 *, u32) {}
#endif
#endif

DEV float low_of(u32 x) {
  return lowest_bits(x << 16);
}
DEV float high_of(u32 x) {
  return lowest_bits(x & 0xffff0000u);
}
DEV u16 bits_of(float x) {
  return (u16)(pack2(x, 0.0f) & 0xffffu);
}

struct two {
  float x, y;
};
DEV two load_two(const bf16 *p, long long i) {
  const u32 v = *(const u32 *)(p + i);
  return {low_of(v), high_of(v)};
}
DEV two load_two(const float *p, long long i) {
  return *(const two *)(p + i);
}
DEV u32 load_packed(const bf16 *p, long long i) {
  return *(const u32 *)(p + i);
}
DEV u32 load_packed(const float *p, long long i) {
  const two v = *(const two *)(p + i);
  return pack2(v.x, v.y);
}
DEV void store_two(bf16 *p, long long i, float x, float y) {
  *(u32 *)(p + i) = pack2(x, y);
}
DEV void store_two(float *p, long long i, float x, float y) {
  *(two *)(p + i) = {x, y};
}
DEV void store_packed(bf16 *p, long long i, u32 v) {
  *(u32 *)(p + i) = v;
}
DEV void store_packed(float *p, long long i, u32 v) {
  *(two *)(p + i) = {low_of(v), high_of(v)};
}
/// An element of an array that is float32 or bf16.
DEV float load_any(const void *p, bool is_float, long long i) {
  return is_float ? ((const float *)p)[i] : lowest_bits((u32)((const bf16 *)p)[i].bits << 16);
}
/// Its bits, to be made a number where it is needed: a load that is converted at once is waited for
/// where it stands.
DEV u32 load_bits(const void *p, bool is_float, long long i) {
  return is_float ? ((const u32 *)p)[i] : (u32)((const bf16 *)p)[i].bits;
}
DEV float number(u32 bits, bool is_float) {
  return lowest_bits(is_float ? bits : bits << 16);
}
DEV two load_two_any(const void *p, bool is_float, long long i) {
  return is_float ? load_two((const float *)p, i) : load_two((const bf16 *)p, i);
}
DEV void store_any(void *p, bool is_float, long long i, float x) {
  if (is_float)
    ((float *)p)[i] = x;
  else
    ((bf16 *)p)[i].bits = bits_of(x);
}

/// Where element (row, column) of a tile of W columns lies.
template <int W>
DEV int at(int row, int column) {
  if (W >= 64) return row * W + (((column >> 3) ^ (row & 7)) << 3) + (column & 7);
  if (W == 32) return row * 32 + (((column >> 3) ^ ((row >> 1) & 3)) << 3) + (column & 7);
  return row * 16 + (((column >> 3) ^ ((row >> 2) & 1)) << 3) + (column & 7);
}

// Operands of m16n8k16 from tiles: A is [m, k], B is [k, n]; `_t` marks a tile stored the other way
// round from the first name: load_a reads [m][k], load_a_t [k][m]; load_b reads [n][k], load_b_t
// [k][n]. B comes for 16 columns at a time: r[0], r[1] for the first eight, r[2], r[3] for the
// rest.
template <int W>
DEV void load_a(u32 (&r)[4], const u16 *tile, int m, int k) {
  const int lane = threadIdx.x & 31;
  ldsm4(r, tile + at<W>(m + (lane & 15), k + (lane >> 4) * 8));
}
template <int W>
DEV void load_a_t(u32 (&r)[4], const u16 *tile, int m, int k) {
  const int lane = threadIdx.x & 31;
  ldsm4t(r, tile + at<W>(k + (lane & 7) + (lane >> 4) * 8, m + ((lane >> 3) & 1) * 8));
}
template <int W>
DEV void load_b(u32 (&r)[4], const u16 *tile, int n, int k) {
  const int lane = threadIdx.x & 31;
  ldsm4(r, tile + at<W>(n + (lane & 7) + (lane >> 4) * 8, k + ((lane >> 3) & 1) * 8));
}
template <int W>
DEV void load_b_t(u32 (&r)[4], const u16 *tile, int n, int k) {
  const int lane = threadIdx.x & 31;
  ldsm4t(r, tile + at<W>(k + (lane & 15), n + (lane >> 4) * 8));
}

/// Two accumulators side by side (16 rows, 16 columns) from the A operand that as_a makes of them.
DEV void from_a(float (&left)[4], float (&right)[4], const u32 (&r)[4]) {
  left[0] = low_of(r[0]);
  left[1] = high_of(r[0]);
  left[2] = low_of(r[1]);
  left[3] = high_of(r[1]);
  right[0] = low_of(r[2]);
  right[1] = high_of(r[2]);
  right[2] = low_of(r[3]);
  right[3] = high_of(r[3]);
}
/// Two accumulators side by side (16 rows, 16 columns) as the A operand of the next product.
DEV void as_a(u32 (&r)[4], const float (&left)[4], const float (&right)[4]) {
  r[0] = pack2(left[0], left[1]);
  r[1] = pack2(left[2], left[3]);
  r[2] = pack2(right[0], right[1]);
  r[3] = pack2(right[2], right[3]);
}
template <int N>
DEV void clear(float (&d)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; n++) d[n][0] = d[n][1] = d[n][2] = d[n][3] = 0.0f;
}
/// 16 rows of accumulators, 8 N columns, into a tile at (row, column).
template <int W, int N>
DEV void store_tile(u16 *tile, int row, int column, const float (&d)[N][4]) {
  const int lane = threadIdx.x & 31, g = lane >> 2, c = (lane & 3) * 2;
#pragma unroll
  for (int n = 0; n < N; n++) {
    *(u32 *)(tile + at<W>(row + g, column + n * 8 + c)) = pack2(d[n][0], d[n][1]);
    *(u32 *)(tile + at<W>(row + g + 8, column + n * 8 + c)) = pack2(d[n][2], d[n][3]);
  }
}
