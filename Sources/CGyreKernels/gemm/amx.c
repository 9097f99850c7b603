// Tile products of AMX: C as 2 x 2 tiles of 16 x 16 sums, A as two tiles of 16 rows x 64 bytes, B as
// two tiles of 16 units x 16 columns. Four loads of 1 KB feed four products of 16 cycles.
//
// A packed: per step of 16 units, 32 rows x 16 units. B packed: as in the vector kernels, 32 columns
// of units per unit of k, which is the layout that tile products want, with a stride of 128 bytes.
//
// BF16X6 splits x = x1 + x2 + x3, all bfloat16, and adds the six products whose indices sum to at most four,
// small ones first: what is missing is 2^-26 of each operand.
#if defined(__x86_64__)
#define CK_LEVEL amx
#include "../common/level.h"
#include "../common/tile_configuration.h"
#include "../common/vmath.h"
#include "kernel.h"
#include <immintrin.h>
#include <string.h>

CK_LEVEL_BEGIN
#include "convert.inc"
#include "pack8.inc"
#include "../common/half_pairs.h"
#include "../common/stream_line.h"

enum {
  TILE = 16,
  SIDE = 2 * TILE,            // rows and columns of a block of C
  STEP_UNITS = 16,
  STEP_WORDS = SIDE * STEP_UNITS,  // of A, and of B
  A_ROW_BYTES = STEP_UNITS * 4,
  B_ROW_BYTES = SIDE * 4,
  STEP_K = 2 * STEP_UNITS,
  PARTS = 3,                  // of a float32 operand in BF16X6
};

static void begin_tiles(void) {
  const struct ck_tile_configuration shapes = ck_tile_shapes(0, 16);
  _tile_loadconfig(&shapes);
}

// Streamed lines are visible before the call returns to who reads them.
static void end_tiles(void) {
  _tile_release();
  _mm_sfence();
}

// Sums in tiles 0 to 3, A in 4 and 5, B in 6 and 7.
#define ZERO_SUMS (_tile_zero(0), _tile_zero(1), _tile_zero(2), _tile_zero(3))
#define LOAD_A(a) (_tile_loadd(4, a, A_ROW_BYTES), _tile_loadd(5, (a) + TILE * STEP_UNITS, A_ROW_BYTES))
#define LOAD_B(b) (_tile_loadd(6, b, B_ROW_BYTES), _tile_loadd(7, (b) + TILE, B_ROW_BYTES))
#define PRODUCTS(product) \
  (product(0, 4, 6), product(1, 4, 7), product(2, 5, 6), product(3, 5, 7))
#define STORE_SUMS(sums)                                                                 \
  (_tile_stored(0, sums, SIDE * 4), _tile_stored(1, (sums) + TILE, SIDE * 4),            \
   _tile_stored(2, (sums) + TILE * SIDE, SIDE * 4),                                      \
   _tile_stored(3, (sums) + TILE * SIDE + TILE, SIDE * 4))

// Sums stay in `sums`: a block lies in 4 KB of its own, where C's rows may all share a cache set.
static void bf16_multiply_block(const uint32_t *a, const uint32_t *b, long units, int rows, bool adds,
                                float *sums) {
  const bool tall = rows > TILE;
  if (adds) {
    _tile_loadd(0, sums, SIDE * 4);
    _tile_loadd(1, sums + TILE, SIDE * 4);
    if (tall) {
      _tile_loadd(2, sums + TILE * SIDE, SIDE * 4);
      _tile_loadd(3, sums + TILE * SIDE + TILE, SIDE * 4);
    }
  } else {
    ZERO_SUMS;
  }
  if (tall) {
    for (long u = 0; u < units; u += STEP_UNITS, a += STEP_WORDS, b += STEP_WORDS) {
      LOAD_A(a);
      LOAD_B(b);
      PRODUCTS(_tile_dpbf16ps);
    }
    STORE_SUMS(sums);
    return;
  }
  for (long u = 0; u < units; u += STEP_UNITS, a += STEP_WORDS, b += STEP_WORDS) {
    _tile_loadd(4, a, A_ROW_BYTES);
    LOAD_B(b);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, sums, SIDE * 4);
  _tile_stored(1, sums + TILE, SIDE * 4);
}

INLINE __mmask32 first_lanes(long count) {
  return count >= 32 ? ~(__mmask32)0 : count <= 0 ? 0 : ((__mmask32)1 << count) - 1;
}

// A row of C of either type, 32 lanes in two halves; lanes outside of `lanes` are zero.
INLINE void load_row(const bool half, const void *c, __mmask32 lanes, __m512 *x) {
  if (!half) {
    x[0] = _mm512_maskz_loadu_ps((__mmask16)lanes, c);
    x[1] = _mm512_maskz_loadu_ps((__mmask16)(lanes >> TILE), (const float *)c + TILE);
    return;
  }
  const __m512i row = _mm512_maskz_loadu_epi16(lanes, c);
  x[0] = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(row)), 16);
  x[1] = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(row, 1)), 16);
}

INLINE void store_row(const bool half, void *c, __mmask32 lanes, bool streams, const __m512 *x) {
  if (half) {
    const __m512i row = (__m512i)_mm512_cvtne2ps_pbh(x[1], x[0]);
    if (streams) ck_stream_line(c, row);
    else _mm512_mask_storeu_epi16(c, lanes, row);
  } else if (streams) {
    _mm512_stream_ps(c, x[0]);
    _mm512_stream_ps((float *)c + TILE, x[1]);
  } else {
    _mm512_mask_storeu_ps(c, (__mmask16)lanes, x[0]);
    _mm512_mask_storeu_ps((float *)c + TILE, (__mmask16)(lanes >> TILE), x[1]);
  }
}

INLINE void deliver_rows(const struct ck_gemm_block *block, const bool half) {
  const __mmask32 lanes = first_lanes(block->columns);
  const __m512 alpha = _mm512_set1_ps(block->alpha), beta = _mm512_set1_ps(block->beta);
  __m512 bias[2] = {0};
  if (block->bias) load_row(false, block->bias, lanes, bias);
  const float *sums = block->sums, *residual = block->residual;
  char *c = block->c;
  uint16_t *hold = block->hold;
  for (int r = 0; r < block->rows; r++, sums += SIDE, c += block->ldc * (half ? 2 : 4)) {
    __m512 x[2], term[2];
    for (int h = 0; h < 2; h++) x[h] = _mm512_fmadd_ps(alpha, _mm512_load_ps(sums + h * TILE), bias[h]);
    if (block->beta != 0) {
      load_row(half, c, lanes, term);
      for (int h = 0; h < 2; h++) x[h] = _mm512_fmadd_ps(beta, term[h], x[h]);
    }
    if (residual) {
      load_row(false, residual + r * block->ldr, lanes, term);
      for (int h = 0; h < 2; h++) x[h] = _mm512_add_ps(x[h], term[h]);
    }
    if (half && hold) {
      if (block->holds) {
        store_row(true, hold + r * SIDE, lanes, false, x);
        continue;
      }
      _mm512_stream_si512((void *)(c - 2 * SIDE), _mm512_load_si512(hold + r * SIDE));
    }
    store_row(half, c, lanes, block->streams, x);
  }
}

static void deliver(const struct ck_gemm_block *block) {
  if (block->c_type == CK_GEMM_TYPE_F32) deliver_rows(block, false);
  else deliver_rows(block, true);
}

// A step's products in an order in which one operand stays: 14 tile loads for 24 products. Sums of one block of k are
// added to the others' at its end, so that long sums lose no more than short ones.
static void bf16x6_multiply_block(const uint32_t *a, const uint32_t *b, long units, int rows, bool adds,
                                  float *sums) {
  (void)rows;
  ZERO_SUMS;
  for (long u = 0; u < units; u += STEP_UNITS, a += PARTS * STEP_WORDS, b += PARTS * STEP_WORDS) {
    LOAD_A(a + 2 * STEP_WORDS);
    LOAD_B(b);
    PRODUCTS(_tile_dpbf16ps);
    LOAD_A(a + STEP_WORDS);
    PRODUCTS(_tile_dpbf16ps);
    LOAD_B(b + STEP_WORDS);
    PRODUCTS(_tile_dpbf16ps);
    LOAD_A(a);
    PRODUCTS(_tile_dpbf16ps);
    LOAD_B(b + 2 * STEP_WORDS);
    PRODUCTS(_tile_dpbf16ps);
    LOAD_B(b);
    PRODUCTS(_tile_dpbf16ps);
  }
  if (!adds) {
    STORE_SUMS(sums);
    return;
  }
  _Alignas(64) float block[SIDE * SIDE];
  STORE_SUMS(block);
  for (int i = 0; i < SIDE * SIDE; i += TILE)
    _mm512_store_ps(sums + i, _mm512_add_ps(_mm512_load_ps(sums + i), _mm512_load_ps(block + i)));
}

static void s8_multiply(const struct ck_gemm_tile *t) {
  const uint32_t *a = t->a, *b = t->b;
  int32_t *c = t->c;  // the int8 driver gives a whole block: ldc = 32
  ZERO_SUMS;
  for (long u = 0; u < t->units; u += STEP_UNITS, a += STEP_WORDS, b += STEP_WORDS) {
    LOAD_A(a);
    LOAD_B(b);
    PRODUCTS(_tile_dpbssd);
  }
  STORE_SUMS(c);
}

static const char *element(const struct ck_gemm_view *view, long x, long k0, long size) {
  return (const char *)view->data + (x * view->x_stride + k0 * view->k_stride) * size;
}

static void s8_pack_a(uint32_t *panel, const struct ck_gemm_view *view, long x, long count, long k0,
                      long k_count) {
  CK_NAME(s8_rows)(panel, element(view, x, k0, 1), view->type, 1, view->x_stride, view->k_stride,
                   count, view->x_count - x, k_count, STEP_WORDS);
}

static void s8_pack_b(uint32_t *panel, const struct ck_gemm_view *view, long x, long count, long k0,
                      long k_count) {
  // Packing fills whole units; the last step's others must be zero.
  const long units = (k_count + 3) / 4;
  if (units % STEP_UNITS) memset(panel + units / STEP_UNITS * STEP_WORDS, 0, STEP_WORDS * 4);
  CK_NAME(s8_panel)(panel, view, x, count, k0, k_count, SIDE);
}

#include "pack_tiles.inc"
CK_LEVEL_END

#define TILE_KERNEL                                                               \
  .mr = SIDE, .nr = SIDE, .lanes = TILE, .step = STEP_UNITS, .begin = begin_tiles, .end = end_tiles

const struct ck_gemm_kernel ck_gemm_bf16_amx = {
    TILE_KERNEL,
    .unit = 2,
    .planes = 1,
    .block_units = 128,  // 16 KB of A and of B: the first cache holds two slivers and a panel
    .sums_a = true,
    .pack_a = bf16_pack_a,
    .pack_b = bf16_pack_b,
    .multiply_block = bf16_multiply_block,
    .deliver = deliver,
};

const struct ck_gemm_kernel ck_gemm_bf16x6_amx = {
    TILE_KERNEL,
    .unit = 2,
    .planes = PARTS,
    .block_units = 64,  // 24 KB of A and of B: the first cache holds a panel, a sliver passes by
    .pack_a = bf16x6_pack_a,
    .pack_b = bf16x6_pack_b,
    .multiply_block = bf16x6_multiply_block,
    .deliver = deliver,
};

const struct ck_gemm_kernel ck_gemm_s8_amx = {
    TILE_KERNEL,
    .unit = 4,
    .planes = 1,
    .block_units = 256,
    .pack_a = s8_pack_a,
    .pack_b = s8_pack_b,
    .multiply = s8_multiply,
};

const struct ck_gemm_level ck_gemm_level_amx = {
    .rows = &ck_gemm_rows_avx512,
    .fast = &ck_gemm_fast_avx512,
    .f32 = &ck_gemm_f32_avx512,
    .bf16 = &ck_gemm_bf16_amx,
    .bf16x6 = &ck_gemm_bf16x6_amx,
    .s8 = &ck_gemm_s8_amx,
};
#endif
