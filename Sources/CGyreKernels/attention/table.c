// Which kernels a level gets.
#include "ck_attention.h"

#define DECLARE(level)                                                           \
  void ck_attention_forward_##level(const struct ck_attention_forward_args *);   \
  void ck_attention_backward_##level(const struct ck_attention_backward_args *); \
  void ck_attention_decode_##level(const struct ck_attention_decode_args *);     \
  static const struct ck_attention_table level##_table = {                       \
      ck_attention_forward_##level, ck_attention_backward_##level, ck_attention_decode_##level};

DECLARE(generic)
#if defined(__x86_64__)
DECLARE(avx2)
DECLARE(avx512)
DECLARE(avx512bf16)
DECLARE(amx)

// float32 kernels of one level, those that may round of another.
#define MIXED(level)                                                             \
  static void mixed_forward_##level(const struct ck_attention_forward_args *a) { \
    (a->shape.bf16 ? &level##_table : &avx512_table)->forward(a);                \
  }                                                                              \
  static void mixed_backward_##level(const struct ck_attention_backward_args *a) { \
    (a->shape.bf16 ? &level##_table : &avx512_table)->backward(a);               \
  }                                                                              \
  static const struct ck_attention_table mixed_##level = {                       \
      mixed_forward_##level, mixed_backward_##level, ck_attention_decode_avx512};
MIXED(avx512bf16)
MIXED(amx)
#elif defined(__aarch64__)
DECLARE(neon)
#endif

bool ck_attention_table_for(enum ck_level level, struct ck_attention_table *out) {
  if (!ck_level_available(level)) return false;
  switch (level) {
#if defined(__x86_64__)
    case CK_LEVEL_AVX2: *out = avx2_table; return true;
    case CK_LEVEL_AVX512: *out = avx512_table; return true;
    case CK_LEVEL_AVX512BF16: *out = mixed_avx512bf16; return true;
    case CK_LEVEL_AMX: *out = mixed_amx; return true;
#elif defined(__aarch64__)
    case CK_LEVEL_NEON: *out = neon_table; return true;
#endif
    case CK_LEVEL_GENERIC: *out = generic_table; return true;
    default: return false;
  }
}
