// The table of each level. AVX-512 without int8 dot products has nothing over AVX2 here.
#include "kernel.h"

#define TABLE(name)                                                        \
  static void product_##name(const struct ck_block_product_args *args) {   \
    ck_blocks_product_run(&ck_blocks_level_##name, args);                  \
  }                                                                        \
  static void unpack_##name(const struct ck_block_unpack_args *args) {     \
    ck_blocks_unpack_run(&ck_blocks_level_##name, args);                   \
  }                                                                        \
  static bool fill_##name(struct ck_blocks_table *out) {                   \
    *out = (struct ck_blocks_table){product_##name, unpack_##name};        \
    return true;                                                           \
  }

TABLE(generic)
#if defined(__x86_64__)
TABLE(avx2)
TABLE(avx512bf16)
#elif defined(__aarch64__)
TABLE(neon)
#endif

bool ck_blocks_table_for(enum ck_level level, struct ck_blocks_table *out) {
  switch (level) {
  case CK_LEVEL_GENERIC: return fill_generic(out);
#if defined(__x86_64__)
  case CK_LEVEL_AVX2:
  case CK_LEVEL_AVX512: return fill_avx2(out);
  case CK_LEVEL_AVX512BF16:
  case CK_LEVEL_AMX: return fill_avx512bf16(out);
#elif defined(__aarch64__)
  case CK_LEVEL_NEON: return fill_neon(out);
#endif
  default: return false;
  }
}
