// Matrix products: batched GEMM with a fused epilogue, products with weights packed ahead of time,
// int8 products.
#pragma once
#include "ck_common.h"

#ifdef __cplusplus
extern "C" {
#endif

/// Element types in memory.
enum ck_gemm_type { CK_GEMM_TYPE_F32 = 0, CK_GEMM_TYPE_BF16 = 1, CK_GEMM_TYPE_F16 = 2 };

/// How products are formed. Sums are float32 always.
enum ck_gemm_compute {
  /// float32 products. Large ones on AMX are made of six products of bfloat16 parts, as exact where elements
  /// have 2^-108 and more; an infinite element gives NaN there.
  CK_GEMM_COMPUTE_F32 = 0,
  /// Both operands rounded to bfloat16 (to nearest even). Levels without bfloat16 instructions round
  /// and multiply in float32; products of a few rows read operands in place and do not round.
  /// Subnormal operands may count as zero.
  CK_GEMM_COMPUTE_BF16 = 1,
};

enum ck_gemm_activation {
  CK_GEMM_ACTIVATION_NONE = 0,
  CK_GEMM_ACTIVATION_RELU = 1,
  CK_GEMM_ACTIVATION_RELU_SQUARED = 2,  // max(x, 0)^2
  CK_GEMM_ACTIVATION_GELU_TANH = 3,     // x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))
  CK_GEMM_ACTIVATION_SILU = 4,
  CK_GEMM_ACTIVATION_SIGMOID = 5,
  CK_GEMM_ACTIVATION_TANH = 6,
};

/// C = activation(alpha op(A) op(B) + beta C + bias) + residual, for each of `batch` problems.
/// Any of m, n, k, batch may be 0. Where beta is 0, C is not read. C must not overlap A or B;
/// residual may be C's own memory. Strides and leading dimensions count elements.
struct ck_gemm_args {
  long m, n, k, batch;
  float alpha, beta;
  const void *a;              // [m, k], or [k, m] where transpose_a
  const void *b;              // [k, n], or [n, k] where transpose_b; unread where packed_b is given
  void *c;                    // [m, n]
  long lda, ldb, ldc;         // elements between rows as stored
  long a_stride, b_stride, c_stride;  // between the batch's matrices; 0 for a and b: shared
  enum ck_gemm_type a_type, b_type;
  enum ck_gemm_type c_type;   // F32 or BF16 (rounded to nearest even once, at the end)
  bool transpose_a, transpose_b;
  enum ck_gemm_compute compute;
  enum ck_gemm_activation activation;
  const float *bias;          // [n], shared by the batch, or NULL
  const float *residual;      // [m, n] float32, or NULL
  long ldr, residual_stride;
  const void *packed_b;       // B from the same table's pack_b with the same compute, or NULL
  float *a_sums;              // [m] or NULL: sums of op(A)'s rows over k, where makes_sums says so
};

/// Writes B in the layout that the level's kernels read.
struct ck_pack_b_args {
  long k, n;
  const void *b;              // [k, n], or [n, k] where transpose_b
  long ldb;
  enum ck_gemm_type b_type;
  bool transpose_b;
  enum ck_gemm_compute compute;
  void *packed;               // packed_b_bytes(k, n, compute) bytes, 64-byte aligned
};

/// C[:, n_begin..<n_end] = A B[:, n_begin..<n_end] + beta C + bias on the calling thread, for few
/// rows: one time step of a recurrent cell. Different column ranges may run at the same time.
struct ck_gemm_packed_args {
  long m, n, k;               // n: columns of the whole packed B
  long n_begin, n_end;        // n_begin: a multiple of the table's packed_columns
  const float *a;             // [m, k] float32
  const void *packed_b;
  float *c;                   // [m, n] float32; column 0 even where n_begin > 0
  long lda, ldc;
  float beta;                 // 0: C is not read
  const float *bias;          // [n] or NULL
  enum ck_gemm_compute compute;
};

/// C = op(A) op(B), or C += op(A) op(B) where accumulate: int8 operands, exact int32 sums (modulo
/// 2^32).
struct ck_gemm_s8s8s32_args {
  long m, n, k, batch;
  const int8_t *a, *b;        // shapes as in ck_gemm_args
  int32_t *c;
  long lda, ldb, ldc;
  long a_stride, b_stride, c_stride;
  bool transpose_a, transpose_b, accumulate;
};

/// Results do not depend on the thread count.
struct ck_gemm_table {
  void (*gemm)(const struct ck_gemm_args *args);
  /// Whether `gemm` of these arguments makes a_sums, as it packs A; two bfloat16 neighbours along k are one
  /// addition there.
  bool (*makes_sums)(const struct ck_gemm_args *args);
  void (*gemm_s8s8s32)(const struct ck_gemm_s8s8s32_args *args);
  size_t (*packed_b_bytes)(long k, long n, enum ck_gemm_compute compute);
  void (*pack_b)(const struct ck_pack_b_args *args);
  void (*gemm_packed)(const struct ck_gemm_packed_args *args);
  long packed_columns;        // columns of one packed panel
  bool has_bf16;              // bfloat16 products run faster than float32 ones
};

/// Fills `out` with the best kernels whose instructions `level` includes; false where this build
/// has no such level. Does not ask whether the processor has it: see ck_level_available.
bool ck_gemm_table_for(enum ck_level level, struct ck_gemm_table *out);

/// Large float32 products may go by Strassen's scheme: at most `levels` levels, 0 (classical products
/// only) to 2, each with an eighth of the multiplications less and twice the rounding error. Negative: the
/// environment's GYRE_STRASSEN, or 2.
void ck_gemm_set_strassen_levels(int levels);
int ck_gemm_strassen_levels(void);

/// float32 C = alpha op(A) op(B) + beta C of an installed BLAS library (row-major, one problem).
typedef void (*ck_blas_sgemm)(const struct ck_gemm_args *args);
/// Loads the library at `path` and returns its product, or NULL where it has no cblas_sgemm with
/// 32-bit integers. One library a process: later calls return the first one. The caller compares
/// and chooses; nothing here uses it by itself.
ck_blas_sgemm ck_blas_load(const char *path);

#ifdef __cplusplus
}
#endif
