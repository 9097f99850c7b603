// The table of each level: the walk bound to the level's kernels and products. AVX-512's small kernels
// and AVX2's integer products serve the levels beside them.
#include "kernel.h"
#include "../common/table_for.h"

#define TABLE(name, small, block)                                                              \
  static const struct ck_token_level level_##name = {                                          \
      &ck_token_kernels_##small, &ck_gemm_level_##name, &ck_blocks_level_##block};             \
  static void step_##name(const struct ck_token_step_args *args) {                             \
    ck_token_run(&level_##name, args);                                                         \
  }                                                                                            \
  static bool fill_##name(struct ck_token_table *out) {                                        \
    *out = (struct ck_token_table){step_##name};                                               \
    return true;                                                                               \
  }

TABLE(generic, generic, generic)
#if defined(__x86_64__)
TABLE(avx2, avx2, avx2)
TABLE(avx512, avx512, avx2)
TABLE(avx512bf16, avx512, avx512bf16)
TABLE(amx, avx512, avx512bf16)
#elif defined(__aarch64__)
TABLE(neon, neon, neon)
#endif

CK_DEFINE_TABLE_FOR_EACH_LEVEL(token)
