// Serial dense products of small tiles (16..128 a side, any size is right), the building block of
// the chunkwise engines. One body for every instruction level: include it after level.h, inside
// CK_LEVEL_BEGIN .. CK_LEVEL_END; all names end in the level.
//
//     CK_NAME(ck_tile_nn)  C[m,n] = beta C + alpha A[m,k]  B[k,n]
//     CK_NAME(ck_tile_tn)  C[m,n] = beta C + alpha A[k,m]ᵀ B[k,n]
//     CK_NAME(ck_tile_nt)  C[m,n] = beta C + alpha A[m,k]  B[n,k]ᵀ
//
// Row-major float32 with leading dimensions (elements from one row to the next). With beta = 0, C is
// not read, so it may hold anything. C must not overlap A or B. For triangular factors call the
// functions on row blocks with the matching n or k. The order of every sum depends on k alone.
//
// At levels with bfloat16 instructions tile_gemm_bf16.h puts its products in their place. Every thread calls CK_NAME(ck_tile_begin)
// before its first product and CK_NAME(ck_tile_end) after its last one.
#pragma once
#include <stddef.h>
#include <string.h>

typedef float CK_NAME(ck_vf) __attribute__((vector_size(CK_LANES * 4)));
typedef float CK_NAME(ck_vf_unaligned) __attribute__((vector_size(CK_LANES * 4), aligned(4)));
#define CK_VF CK_NAME(ck_vf)
#define CK_TILE_INLINE static inline __attribute__((always_inline, unused))

#if CK_LANES == 16 || CK_LEVEL_ID == 5
#define CK_TILE_ROWS 8  // 32 vector registers: 8 x 2 accumulators
#else
#define CK_TILE_ROWS 4  // 16 vector registers: 4 x 2 accumulators
#endif
// Inner lengths are split so that the panel of B that a block of C sweeps stays in the first cache.
#define CK_TILE_DEPTH 256

CK_TILE_INLINE void CK_NAME(ck_tile_begin)(void) {}
CK_TILE_INLINE void CK_NAME(ck_tile_end)(void) {}

CK_TILE_INLINE CK_VF CK_NAME(ck_vload)(const float *p) {
  return *(const CK_NAME(ck_vf_unaligned) *)p;
}
CK_TILE_INLINE void CK_NAME(ck_vstore)(float *p, CK_VF x) {
  *(CK_NAME(ck_vf_unaligned) *)p = x;
}

// `rows` x (`vectors` CK_LANES) block of C. Element (i, p) of A is a[i * a_row + p * a_column].
CK_TILE_INLINE void CK_NAME(ck_tile_block)(const int rows, const int vectors, long k,
                                           const float *a, long a_row, long a_column,
                                           const float *b, long ldb, float *c, long ldc,
                                           float alpha, float beta) {
  CK_VF sum[8][4];
#pragma clang loop unroll(full)
  for (int i = 0; i < rows; i++)
#pragma clang loop unroll(full)
    for (int j = 0; j < vectors; j++) sum[i][j] = (CK_VF){0};
  for (long p = 0; p < k; p++) {
    CK_VF column[4];
#pragma clang loop unroll(full)
    for (int j = 0; j < vectors; j++) column[j] = CK_NAME(ck_vload)(b + p * ldb + j * CK_LANES);
#pragma clang loop unroll(full)
    for (int i = 0; i < rows; i++) {
      const float x = a[i * a_row + p * a_column];
#pragma clang loop unroll(full)
      for (int j = 0; j < vectors; j++) sum[i][j] += column[j] * x;
    }
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < rows; i++)
#pragma clang loop unroll(full)
    for (int j = 0; j < vectors; j++) {
      float *target = c + i * ldc + j * CK_LANES;
      CK_VF value = sum[i][j] * alpha;
      if (beta != 0.0f) value += CK_NAME(ck_vload)(target) * beta;
      CK_NAME(ck_vstore)(target, value);
    }
}

// All rows of C for one panel of `vectors` vectors of columns.
CK_TILE_INLINE void CK_NAME(ck_tile_panel)(const int vectors, long m, long k, const float *a,
                                           long a_row, long a_column, const float *b, long ldb,
                                           float *c, long ldc, float alpha, float beta) {
  long i = 0;
  for (; i + CK_TILE_ROWS <= m; i += CK_TILE_ROWS)
    CK_NAME(ck_tile_block)(CK_TILE_ROWS, vectors, k, a + i * a_row, a_row, a_column, b, ldb,
                           c + i * ldc, ldc, alpha, beta);
#if CK_TILE_ROWS == 8
  if (m - i >= 4) {
    CK_NAME(ck_tile_block)(4, vectors, k, a + i * a_row, a_row, a_column, b, ldb, c + i * ldc, ldc,
                           alpha, beta);
    i += 4;
  }
#endif
  if (m - i >= 2) {
    CK_NAME(ck_tile_block)(2, vectors, k, a + i * a_row, a_row, a_column, b, ldb, c + i * ldc, ldc,
                           alpha, beta);
    i += 2;
  }
  if (m - i >= 1)
    CK_NAME(ck_tile_block)(1, vectors, k, a + i * a_row, a_row, a_column, b, ldb, c + i * ldc, ldc,
                           alpha, beta);
}

// The columns that do not fill a vector, through zero-padded copies.
static __attribute__((noinline, unused)) void CK_NAME(ck_tile_fringe)(
    long m, long n, long k, const float *a, long a_row, long a_column, const float *b, long ldb,
    float *c, long ldc, float alpha, float beta) {
  _Alignas(64) float panel[CK_TILE_DEPTH * CK_LANES], block[CK_TILE_ROWS * CK_LANES];
  for (long p = 0; p < k; p++)
    for (long j = 0; j < CK_LANES; j++) panel[p * CK_LANES + j] = j < n ? b[p * ldb + j] : 0.0f;
  for (long i = 0; i < m; i += CK_TILE_ROWS) {
    const long rows = m - i < CK_TILE_ROWS ? m - i : CK_TILE_ROWS;
    CK_NAME(ck_tile_panel)(1, rows, k, a + i * a_row, a_row, a_column, panel, CK_LANES, block,
                           CK_LANES, alpha, 0.0f);
    for (long r = 0; r < rows; r++)
      for (long j = 0; j < n; j++) {
        float *target = c + (i + r) * ldc + j;
        *target = block[r * CK_LANES + j] + (beta != 0.0f ? *target * beta : 0.0f);
      }
  }
}

static __attribute__((noinline, unused)) void CK_NAME(ck_tile_product)(
    long m, long n, long k, const float *a, long a_row, long a_column, const float *b, long ldb,
    float *c, long ldc, float alpha, float beta) {
  long start = 0;
  do {  // runs once for k = 0, to scale C
    const long depth = k - start < CK_TILE_DEPTH ? k - start : CK_TILE_DEPTH;
    const float *as = a + start * a_column, *bs = b + start * ldb;
    const float keep = start == 0 ? beta : 1.0f;
    long j = 0;
    for (; j + 2 * CK_LANES <= n; j += 2 * CK_LANES)
      CK_NAME(ck_tile_panel)(2, m, depth, as, a_row, a_column, bs + j, ldb, c + j, ldc, alpha, keep);
    if (j + CK_LANES <= n) {
      CK_NAME(ck_tile_panel)(1, m, depth, as, a_row, a_column, bs + j, ldb, c + j, ldc, alpha, keep);
      j += CK_LANES;
    }
    if (j < n)
      CK_NAME(ck_tile_fringe)(m, n - j, depth, as, a_row, a_column, bs + j, ldb, c + j, ldc, alpha,
                              keep);
    start += CK_TILE_DEPTH;
  } while (start < k);
}

CK_TILE_INLINE void CK_NAME(ck_tile_nn)(long m, long n, long k, float alpha, const float *a,
                                        long lda, const float *b, long ldb, float beta, float *c,
                                        long ldc) {
  CK_NAME(ck_tile_product)(m, n, k, a, lda, 1, b, ldb, c, ldc, alpha, beta);
}

CK_TILE_INLINE void CK_NAME(ck_tile_tn)(long m, long n, long k, float alpha, const float *a,
                                        long lda, const float *b, long ldb, float beta, float *c,
                                        long ldc) {
  CK_NAME(ck_tile_product)(m, n, k, a, 1, lda, b, ldb, c, ldc, alpha, beta);
}

// out[j, i] = in[i, j], in: [m, n].
static __attribute__((noinline, unused)) void CK_NAME(ck_tile_transpose)(
    long m, long n, const float *in, long ldi, float *out, long ldo) {
  typedef float four __attribute__((vector_size(16)));
  typedef float four_unaligned __attribute__((vector_size(16), aligned(4)));
  long i = 0;
  for (; i + 4 <= m; i += 4) {
    long j = 0;
    for (; j + 4 <= n; j += 4) {
      const float *s = in + i * ldi + j;
      const four r0 = *(const four_unaligned *)s, r1 = *(const four_unaligned *)(s + ldi),
                 r2 = *(const four_unaligned *)(s + 2 * ldi),
                 r3 = *(const four_unaligned *)(s + 3 * ldi);
      const four a = __builtin_shufflevector(r0, r1, 0, 4, 1, 5),
                 b = __builtin_shufflevector(r2, r3, 0, 4, 1, 5),
                 c = __builtin_shufflevector(r0, r1, 2, 6, 3, 7),
                 d = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
      float *t = out + j * ldo + i;
      *(four_unaligned *)t = __builtin_shufflevector(a, b, 0, 1, 4, 5);
      *(four_unaligned *)(t + ldo) = __builtin_shufflevector(a, b, 2, 3, 6, 7);
      *(four_unaligned *)(t + 2 * ldo) = __builtin_shufflevector(c, d, 0, 1, 4, 5);
      *(four_unaligned *)(t + 3 * ldo) = __builtin_shufflevector(c, d, 2, 3, 6, 7);
    }
    for (; j < n; j++)
      for (long r = i; r < i + 4; r++) out[j * ldo + r] = in[r * ldi + j];
  }
  for (; i < m; i++)
    for (long j = 0; j < n; j++) out[j * ldo + i] = in[i * ldi + j];
}

// B is transposed block by block into a panel on the stack: the cost is 1/m of the product's.
static __attribute__((noinline, unused)) void CK_NAME(ck_tile_nt)(
    long m, long n, long k, float alpha, const float *a, long lda, const float *b, long ldb,
    float beta, float *c, long ldc) {
  _Alignas(64) float panel[64 * 128];
  long start = 0;
  do {
    const long depth = k - start < 64 ? k - start : 64;
    for (long j = 0; j < n; j += 128) {
      const long width = n - j < 128 ? n - j : 128;
      const long padded = (width + CK_LANES - 1) / CK_LANES * CK_LANES;
      CK_NAME(ck_tile_transpose)(width, depth, b + j * ldb + start, ldb, panel, padded);
      CK_NAME(ck_tile_product)(m, width, depth, a + start, lda, 1, panel, padded, c + j, ldc, alpha,
                               start == 0 ? beta : 1.0f);
    }
    start += 64;
  } while (start < k);
}

#if CK_LEVEL_ID == 3 || CK_LEVEL_ID == 4
#include "tile_gemm_bf16.h"
#endif
