// bfloat16 products (vdpbf16ps: two products a lane, subnormals count as zero) and int8 products
// (vpdpbusd: four products a lane, unsigned by signed, so A is packed with 128 added).
#if defined(__x86_64__)
#define CK_LEVEL avx512bf16
#include "../common/level.h"
#include "../common/vmath.h"
#include "kernel.h"
#include <immintrin.h>
#include <string.h>

#pragma clang fp contract(fast)
CK_LEVEL_BEGIN
#include "convert.inc"
#include "pack16.inc"
#include "pack8.inc"

#define MICRO_ROWS 14
#define MICRO_VECTORS 2

#define MICRO(name) CK_NAME(bf16_##name)
#define MICRO_SUM VF
#define MICRO_OUT float
#define MICRO_SPLAT(u) ((VU)(u))
#define MICRO_MADD(sum, a, b) \
  ((VF)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)(a), (__m512bh)(b)))
#define MICRO_SCALED 1
#include "multiply.inc"
#undef MICRO
#undef MICRO_SUM
#undef MICRO_OUT
#undef MICRO_MADD
#undef MICRO_SCALED

typedef int32_t vi32 __attribute__((ext_vector_type(CK_LANES)));
#define MICRO(name) CK_NAME(s8_##name)
#define MICRO_SUM vi32
#define MICRO_OUT int32_t
#define MICRO_MADD(sum, a, b) \
  ((vi32)_mm512_dpbusd_epi32((__m512i)(sum), (__m512i)(a), (__m512i)(b)))
#define MICRO_SCALED 0
#include "multiply.inc"

static void bf16_pack_a(uint32_t *panel, const struct ck_gemm_view *view, long x, long count, long k0,
                        long k_count) {
  CK_NAME(bf16_panel)(panel, view, x, count, k0, k_count, MICRO_ROWS);
}

static void bf16_pack_b(uint32_t *panel, const struct ck_gemm_view *view, long x, long count, long k0,
                        long k_count) {
  CK_NAME(bf16_panel)(panel, view, x, count, k0, k_count, MICRO_VECTORS * CK_LANES);
}

static void s8_pack_a(uint32_t *panel, const struct ck_gemm_view *view, long x, long count, long k0,
                      long k_count) {
  CK_NAME(s8_panel)(panel, view, x, count, k0, k_count, MICRO_ROWS);
  for (long i = 0; i < (k_count + 3) / 4 * MICRO_ROWS; i++) panel[i] ^= 0x80808080u;
}

static void s8_pack_b(uint32_t *panel, const struct ck_gemm_view *view, long x, long count, long k0,
                      long k_count) {
  CK_NAME(s8_panel)(panel, view, x, count, k0, k_count, MICRO_VECTORS * CK_LANES);
}
CK_LEVEL_END

const struct ck_gemm_kernel ck_gemm_bf16_avx512bf16 = {
    .mr = MICRO_ROWS,
    .nr = MICRO_VECTORS * CK_LANES,
    .lanes = CK_LANES,
    .unit = 2,
    .step = 1,
    .planes = 1,
    .block_units = 256,
    .pack_a = bf16_pack_a,
    .pack_b = bf16_pack_b,
    .multiply = CK_NAME(bf16_multiply),
    .multiply_strided = CK_NAME(bf16_multiply_strided),
};

const struct ck_gemm_kernel ck_gemm_s8_avx512bf16 = {
    .mr = MICRO_ROWS,
    .nr = MICRO_VECTORS * CK_LANES,
    .lanes = CK_LANES,
    .unit = 4,
    .step = 1,
    .planes = 1,
    .block_units = 256,
    .pack_a = s8_pack_a,
    .pack_b = s8_pack_b,
    .multiply = CK_NAME(s8_multiply),
    .multiply_strided = CK_NAME(s8_multiply_strided),
};

const struct ck_gemm_level ck_gemm_level_avx512bf16 = {
    .rows = &ck_gemm_rows_avx512,
    .fast = &ck_gemm_fast_avx512,
    .f32 = &ck_gemm_f32_avx512,
    .bf16 = &ck_gemm_bf16_avx512bf16,
    .s8 = &ck_gemm_s8_avx512bf16,
    .s8_unsigned_a = true,
};
#endif
