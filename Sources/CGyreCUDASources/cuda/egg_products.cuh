// Products of 16 rows a warp with int8 operands: 64 rows of a warpgroup by wgmma on sm_90a, otherwise
// mma.m16n8k32. The operand of members is in registers, that of weights in shared memory as
// [inputs / 16][outputs][16].
#pragma once
#include "egg.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL && !defined(GYRE_EGG_PORTABLE)
#define GYRE_WGMMA 1
#else
#define GYRE_WGMMA 0
#endif

GYRE_DEVICE u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

#if GYRE_WGMMA
#define DOWN_4(d, i) "+r"(d[(i)]), "+r"(d[(i) + 1]), "+r"(d[(i) + 2]), "+r"(d[(i) + 3])
#define DOWN_16(d, i) DOWN_4(d, i), DOWN_4(d, (i) + 4), DOWN_4(d, (i) + 8), DOWN_4(d, (i) + 12)
#define DOWN_32(d, i) DOWN_16(d, i), DOWN_16(d, (i) + 16)
GYRE_DEVICE void wgmma(int (&d)[32], u32 a0, u32 a1, u32 a2, u32 a3, u64 b, bool adds) {
  asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %37, 0;\n"
               " wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
               "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
               "{%32, %33, %34, %35}, %36, p;\n}"
               : DOWN_32(d, 0)
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"((int)adds));
}
GYRE_DEVICE void wgmma(int (&d)[64], u32 a0, u32 a1, u32 a2, u32 a3, u64 b, bool adds) {
  asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %69, 0;\n"
               " wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
               "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
               "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
               "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
               "{%64, %65, %66, %67}, %68, p;\n}"
               : DOWN_32(d, 0), DOWN_32(d, 32)
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"((int)adds));
}
GYRE_DEVICE void wgmma(int (&d)[96], u32 a0, u32 a1, u32 a2, u32 a3, u64 b, bool adds) {
  asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %101, 0;\n"
               " wgmma.mma_async.sync.aligned.m64n192k32.s32.s8.s8 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
               "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
               "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
               "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, "
               "%66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "
               "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95}, "
               "{%96, %97, %98, %99}, %100, p;\n}"
               : DOWN_32(d, 0), DOWN_32(d, 32), DOWN_32(d, 64)
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"((int)adds));
}
GYRE_DEVICE void wgmma(int (&d)[128], u32 a0, u32 a1, u32 a2, u32 a3, u64 b, bool adds) {
  asm volatile("{\n .reg .pred p;\n setp.ne.b32 p, %133, 0;\n"
               " wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
               "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
               "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
               "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, "
               "%66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "
               "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, "
               "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "
               "%111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, "
               "%124, %125, %126, %127}, "
               "{%128, %129, %130, %131}, %132, p;\n}"
               : DOWN_32(d, 0), DOWN_32(d, 32), DOWN_32(d, 64), DOWN_32(d, 96)
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"((int)adds));
}
#undef DOWN_4
#undef DOWN_16
#undef DOWN_32

GYRE_DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
GYRE_DEVICE void products_wait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }

/// d = x w, or d += x w with `adds`: STEPS times 32 inputs, whose words are x0[2 s], x0[2 s + 1] for the
/// first member of a thread and x1 for the second; OUTPUTS outputs.
template <int OUTPUTS, int STEPS>
GYRE_DEVICE void multiply(int (&d)[OUTPUTS / 2], const u32 *x0, const u32 *x1, u32 weights, bool adds) {
  // No swizzle: groups of 8 rows of 16 bytes lie 128 bytes apart, the next 16 inputs 16 OUTPUTS.
  const u64 b = (u64)((weights & 0x3ffff) >> 4) | (u64)OUTPUTS << 16 | (u64)(128 >> 4) << 32;
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
  for (int s = 0; s < STEPS; s++)
    wgmma(d, x0[2 * s], x1[2 * s], x0[2 * s + 1], x1[2 * s + 1], b + (u64)(2 * s * OUTPUTS), adds || s > 0);
}
#else
GYRE_DEVICE void products_commit() {}
GYRE_DEVICE void products_wait() {}

template <int OUTPUTS, int STEPS>
GYRE_DEVICE void multiply(int (&d)[OUTPUTS / 2], const u32 *x0, const u32 *x1, u32 weights, bool adds) {
  const int lane = threadIdx.x % 32, matrix = lane / 8;
  weights += (matrix % 2 * OUTPUTS + matrix / 2 * 8 + lane % 8) * 16;
#pragma unroll
  for (int n = 0; n < OUTPUTS / 16; n++) {
    int *c = d + 8 * n;
    if (!adds)
      for (int i = 0; i < 8; i++) c[i] = 0;
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
      u32 b[4];
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                   : "r"(weights + (u32)((2 * s * OUTPUTS + 16 * n) * 16)));
#pragma unroll
      for (int half = 0; half < 2; half++)
        asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
            "{%8, %9}, {%0, %1, %2, %3};"
            : "+r"(c[4 * half]), "+r"(c[4 * half + 1]), "+r"(c[4 * half + 2]), "+r"(c[4 * half + 3])
            : "r"(x0[2 * s]), "r"(x1[2 * s]), "r"(x0[2 * s + 1]), "r"(x1[2 * s + 1]), "r"(b[2 * half]),
              "r"(b[2 * half + 1]));
    }
  }
}
#endif
