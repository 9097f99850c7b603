// The table of each level: the driver bound to the level's kernels.
#include "kernel.h"
#include "../common/table_for.h"

#define TABLE(name)                                                                            \
  static void gemm_##name(const struct ck_gemm_args *args) {                                   \
    ck_gemm_run(&ck_gemm_level_##name, args);                                                  \
  }                                                                                            \
  static bool sums_##name(const struct ck_gemm_args *args) {                                   \
    return ck_gemm_makes_sums(&ck_gemm_level_##name, args);                                    \
  }                                                                                            \
  static void s8_##name(const struct ck_gemm_s8s8s32_args *args) {                             \
    ck_gemm_s8_run(&ck_gemm_level_##name, args);                                               \
  }                                                                                            \
  static size_t bytes_##name(long k, long n, enum ck_gemm_compute compute) {                   \
    return ck_gemm_packed_bytes(&ck_gemm_level_##name, k, n, compute);                         \
  }                                                                                            \
  static void pack_##name(const struct ck_pack_b_args *args) {                                 \
    ck_gemm_pack_run(&ck_gemm_level_##name, args);                                             \
  }                                                                                            \
  static void packed_##name(const struct ck_gemm_packed_args *args) {                          \
    ck_gemm_packed_run(&ck_gemm_level_##name, args);                                           \
  }                                                                                            \
  static bool fill_##name(struct ck_gemm_table *out) {                                         \
    const struct ck_gemm_level *level = &ck_gemm_level_##name;                                 \
    *out = (struct ck_gemm_table){                                                             \
        .gemm = gemm_##name,                                                                   \
        .makes_sums = sums_##name,                                                             \
        .gemm_s8s8s32 = s8_##name,                                                             \
        .packed_b_bytes = bytes_##name,                                                        \
        .pack_b = pack_##name,                                                                 \
        .gemm_packed = packed_##name,                                                          \
        .packed_columns = level->f32->nr,                                                      \
        .has_bf16 = level->bf16 != NULL,                                                       \
    };                                                                                         \
    return true;                                                                               \
  }

TABLE(generic)
#if defined(__x86_64__)
TABLE(avx2)
TABLE(avx512)
TABLE(avx512bf16)
TABLE(amx)
#elif defined(__aarch64__)
TABLE(neon)
#endif

CK_DEFINE_TABLE_FOR_EACH_LEVEL(gemm)
