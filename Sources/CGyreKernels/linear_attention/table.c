#include "sizes.h"

#define LA_DECLARE(level)                                                                          \
  void ck_linear_attention_forward_##level(const struct ck_linear_attention_forward_args *);      \
  void ck_linear_attention_backward_##level(const struct ck_linear_attention_backward_args *);    \
  void ck_linear_attention_step_##level(const struct ck_linear_attention_step_args *);             \
  bool ck_linear_attention_takes_scales_##level(const struct ck_linear_attention_problem *);
#define LA_TABLE(level)                                                                            \
  (struct ck_linear_attention_table) {                                                             \
    ck_linear_attention_forward_##level, ck_linear_attention_backward_##level,                     \
        ck_linear_attention_step_##level, ck_linear_attention_takes_scales_##level                 \
  }

LA_DECLARE(generic)
LA_DECLARE(avx2)
LA_DECLARE(avx512)
LA_DECLARE(avx512bf16)
LA_DECLARE(amx)
LA_DECLARE(neon)

#if defined(__x86_64__)
// float32 kernels of one level, those that may round of another.
#define LA_MIXED(level)                                                                            \
  static void la_forward_##level(const struct ck_linear_attention_forward_args *a) {               \
    (a->problem.bf16 ? ck_linear_attention_forward_##level : ck_linear_attention_forward_avx512)(a); \
  }                                                                                                \
  static void la_backward_##level(const struct ck_linear_attention_backward_args *a) {             \
    (a->problem.bf16 ? ck_linear_attention_backward_##level                                        \
                     : ck_linear_attention_backward_avx512)(a);                                    \
  }                                                                                                \
  static bool la_takes_scales_##level(const struct ck_linear_attention_problem *p) {               \
    return p->bf16 && ck_linear_attention_takes_scales_##level(p);                                 \
  }                                                                                                \
  static const struct ck_linear_attention_table la_mixed_##level = {                               \
      la_forward_##level, la_backward_##level, ck_linear_attention_step_avx512,                    \
      la_takes_scales_##level};
LA_MIXED(avx512bf16)
LA_MIXED(amx)
#endif

bool ck_linear_attention_table_for(enum ck_level level, struct ck_linear_attention_table *out) {
  switch (level) {
    case CK_LEVEL_GENERIC:
      *out = LA_TABLE(generic);
      return true;
#if defined(__x86_64__)
    case CK_LEVEL_AVX2:
      *out = LA_TABLE(avx2);
      return true;
    case CK_LEVEL_AVX512:
      *out = LA_TABLE(avx512);
      return true;
    case CK_LEVEL_AVX512BF16:
      *out = la_mixed_avx512bf16;
      return true;
    case CK_LEVEL_AMX:
      *out = la_mixed_amx;
      return true;
#elif defined(__aarch64__)
    case CK_LEVEL_NEON:
      *out = LA_TABLE(neon);
      return true;
#endif
    default:
      return false;
  }
}

size_t ck_linear_attention_saved_floats(const struct ck_linear_attention_problem *p) {
  if (p->form == CK_LINEAR_ATTENTION_RECURRENT) return 0;
  const long chunk = la_chunk(p), chunks = (p->time + chunk - 1) / chunk;
  return (size_t)(p->batch * p->heads * chunks * p->key_width * la_round16(p->value_width));
}
