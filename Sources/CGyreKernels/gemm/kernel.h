// What one instruction level supplies to the portable driver: tile sizes, packing, tile products.
//
// Packed operands are panels of 32-bit units: one float, two bfloat16 or four int8 that follow each
// other along k. A panel of width w holds, for each unit step, w units (one per row of A or column
// of B); panels follow each other, each with all of k, so that a block of k is contiguous in one.
#pragma once
#include "ck_gemm.h"

enum { CK_GEMM_TYPE_S8 = 3 };  // beside enum ck_gemm_type

static inline long ck_gemm_type_size(int type) {
  return type == CK_GEMM_TYPE_F32 ? 4 : type == CK_GEMM_TYPE_S8 ? 1 : 2;
}

/// op(A) seen as rows x k, or op(B) seen as columns x k.
struct ck_gemm_view {
  const void *data;
  int type;          // enum ck_gemm_type or CK_GEMM_TYPE_S8
  long x_count;      // rows of A / columns of B
  long x_stride;     // elements between them
  long k_stride;     // elements along k; this or x_stride is 1
  bool round_bf16;   // round to bfloat16 on the way (levels that multiply bfloat16 as float32)
  float *sums;       // [x_count] or NULL: what is packed is added to; of kernels with `sums_a`
};

/// A product of tiles: c[rows, columns] = alpha a b + beta c, float32 (int32 and no alpha for int8).
/// `a` has strides in units; `b` has one row of units per step, and panels for wide tiles.
struct ck_gemm_tile {
  long units;            // steps along k
  int rows, columns;     // rows <= mr; columns <= nr, or more where the kernel takes wide tiles
  const uint32_t *a, *b;
  long a_row_stride, a_unit_stride;  // of `multiply_strided` only
  long b_row_stride, b_panel_stride;
  void *c;
  long ldc;
  float alpha, beta;
};

/// A block of sums [mr][nr] on its way to C: c = alpha sums + bias + beta c + residual.
struct ck_gemm_block {
  const float *sums;
  int rows, columns;
  const float *bias;     // of the block's columns, or NULL
  const float *residual; // the block's first, or NULL
  long ldr;
  void *c;
  long ldc;
  int c_type;            // float32 or bfloat16
  float alpha, beta;
  bool streams;          // beta is 0, and whole lines of C go to memory without being read first
  // Of a streamed block in bfloat16, whose rows are single lines: its rounded rows [mr][nr] wait in `hold` where
  // `holds`, else they follow those that wait there. NULL: rows go alone.
  uint16_t *hold;
  bool holds;
};

/// Scaled sums of packed blocks for Strassen's products: A's where `is_a`, else B's.
struct ck_gemm_sums {
  bool is_a;
  int levels;               // 1: 2 x 2 blocks give 7 sums, 2: 4 x 4 blocks give 49
  const float *blocks;      // packed, row after row of blocks
  long block_stride, count; // floats between blocks and in one, a multiple of the period
  const float *scale;       // [blocks of A's rows or B's columns][period]
  long period;              // places of a panel in whole vectors
  float *out;
  long out_stride;
};

/// One sliver of A against panels of B, each tile added to up to four tiles.
struct ck_gemm_spread {
  long units, panels;
  int rows, targets;
  const uint32_t *a, *b;
  float *target[4];
  float sign[4];
  long ldc;
  const void *ahead;        // 64 bytes a unit and panel are asked for from here on
};

/// C = factor * source scaled by rows and columns + beta C.
struct ck_gemm_deliver {
  const float *source;
  long source_stride;
  float factor;
  const float *row_scale, *column_scale;
  long rows, columns;
  float *c;
  long ldc;
  float beta;
};

struct ck_gemm_kernel {
  int mr, nr;            // tile rows and columns
  int lanes;             // of a vector: a tile's columns may be one vector too
  int unit;              // elements of k in a unit
  int step;              // packed units of k are padded with zeros to a multiple of this
  int planes;            // parts of each element, one step after the other
  long block_units;      // units of k multiplied in one pass; a multiple of step
  bool sums_a;           // pack_a adds rows of bfloat16 that lie side by side to view->sums
  void (*pack_a)(uint32_t *panel, const struct ck_gemm_view *view, long x, long count, long k0,
                 long k_count);
  void (*pack_b)(uint32_t *panel, const struct ck_gemm_view *view, long x, long count, long k0,
                 long k_count);
  void (*multiply)(const struct ck_gemm_tile *tile);          // both operands packed
  void (*multiply_strided)(const struct ck_gemm_tile *tile);  // any strides, or NULL
  // Or, instead of `multiply`: sums [mr][nr] = a b + (adds ? sums : 0), and a block's way to C.
  void (*multiply_block)(const uint32_t *a, const uint32_t *b, long units, int rows, bool adds,
                         float *sums);
  void (*deliver)(const struct ck_gemm_block *block);
  void (*begin)(void);   // tile configuration of the calling thread, or NULL
  void (*end)(void);
};

/// The last step of a row range of C: source (float32) -> C.
struct ck_gemm_finish {
  const float *source;
  long source_stride;
  long rows, columns;
  void *c;               // may be `source`
  long ldc;
  int c_type;
  float beta;            // applied here where C is not float32
  const float *bias, *residual;
  long ldr;
  enum ck_gemm_activation activation;
};

/// y[rows, columns] = alpha x W^T for few rows: streams W once.
struct ck_gemm_dot {
  long rows, columns, k;
  const float *x;        // [rows, k]
  long ldx;
  const void *w;         // [columns, k]
  long ldw;
  int w_type;
  float *y;
  long y_row_stride, y_column_stride;
  float alpha;
};
enum { CK_GEMM_DOT_ROWS = 4, CK_GEMM_DOT_COLUMNS = 4 };  // register block

/// What is not tile products: one set serves all levels with the same float vectors.
struct ck_gemm_rows {
  void (*finish)(const struct ck_gemm_finish *finish);
  void (*dot)(const struct ck_gemm_dot *dot);
  void (*to_f32)(float *out, const void *in, int type, bool round_bf16, long count);
};

/// What Strassen's products need beside float32 tiles.
struct ck_gemm_fast {
  void (*form)(const struct ck_gemm_sums *sums);
  void (*largest)(const float *block, long count, long period, uint32_t *largest);
  void (*spread)(const struct ck_gemm_spread *spread);
  void (*deliver)(const struct ck_gemm_deliver *deliver);
};

struct ck_gemm_level {
  const struct ck_gemm_rows *rows;
  const struct ck_gemm_fast *fast;      // for f32
  const struct ck_gemm_kernel *f32;
  const struct ck_gemm_kernel *bf16;    // NULL: f32 on rounded operands
  const struct ck_gemm_kernel *bf16x6;  // NULL: f32
  const struct ck_gemm_kernel *s8;      // NULL: f32, which is exact in short sums
  bool s8_unsigned_a;                   // the int8 kernel packs A with 128 added
};

extern const struct ck_gemm_kernel ck_gemm_f32_generic, ck_gemm_f32_avx2, ck_gemm_f32_avx512,
    ck_gemm_f32_neon, ck_gemm_bf16_avx512bf16, ck_gemm_s8_avx512bf16, ck_gemm_bf16_amx,
    ck_gemm_bf16x6_amx, ck_gemm_s8_amx;
extern const struct ck_gemm_rows ck_gemm_rows_avx512;
extern const struct ck_gemm_fast ck_gemm_fast_avx512;
extern const struct ck_gemm_level ck_gemm_level_generic, ck_gemm_level_avx2, ck_gemm_level_avx512,
    ck_gemm_level_avx512bf16, ck_gemm_level_amx, ck_gemm_level_neon;

/// A float32 product for Strassen's scheme.
struct ck_gemm_strassen {
  const struct ck_gemm_level *level;
  struct ck_gemm_view a, b;
  long m, n, k;
  float alpha, beta;
  float *c;
  long ldc;
  void (*finish)(const void *context, long row, long rows, long column, long columns);
  const void *context;    // finish: NULL where C needs nothing more
};

/// C = alpha op(A) op(B) + beta C, then `finish` of every part. False where it is not for this product
/// (nothing is written, or where beta is 0 something that a second product overwrites).
bool ck_gemm_strassen_run(const struct ck_gemm_strassen *product);

bool ck_gemm_makes_sums(const struct ck_gemm_level *level, const struct ck_gemm_args *args);
void ck_gemm_run(const struct ck_gemm_level *level, const struct ck_gemm_args *args);
void ck_gemm_s8_run(const struct ck_gemm_level *level, const struct ck_gemm_s8s8s32_args *args);
size_t ck_gemm_packed_bytes(const struct ck_gemm_level *level, long k, long n,
                            enum ck_gemm_compute compute);
void ck_gemm_pack_run(const struct ck_gemm_level *level, const struct ck_pack_b_args *args);
void ck_gemm_packed_run(const struct ck_gemm_level *level, const struct ck_gemm_packed_args *args);
