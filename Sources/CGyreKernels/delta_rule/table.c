// Which kernels of the delta rule a level gets, and the sizes that callers need.
#include "delta_rule.h"

#define DECLARE(level)                                                              \
  void ck_delta_rule_forward_##level(const struct ck_delta_rule_forward_args *);    \
  void ck_delta_rule_backward_##level(const struct ck_delta_rule_backward_args *);  \
  void ck_delta_rule_step_##level(const struct ck_delta_rule_step_args *);
#define TABLE(level)                                                                \
  (struct ck_delta_rule_table) {                                                    \
    ck_delta_rule_forward_##level, ck_delta_rule_backward_##level, ck_delta_rule_step_##level \
  }

DECLARE(generic)
#if defined(__x86_64__)
DECLARE(avx2)
DECLARE(avx512)
#elif defined(__aarch64__)
DECLARE(neon)
#endif

bool ck_delta_rule_table_for(enum ck_level level, struct ck_delta_rule_table *out) {
  switch (level) {
    case CK_LEVEL_GENERIC: *out = TABLE(generic); return true;
#if defined(__x86_64__)
    case CK_LEVEL_AVX2: *out = TABLE(avx2); return true;
    case CK_LEVEL_AVX512:
    case CK_LEVEL_AVX512BF16:
    case CK_LEVEL_AMX: *out = TABLE(avx512); return true;
#elif defined(__aarch64__)
    case CK_LEVEL_NEON: *out = TABLE(neon); return true;
#endif
    default: return false;
  }
}

long ck_delta_rule_stride(enum ck_delta_rule_form form, long chunk_size, long tokens) {
  if (form == CK_DELTA_RULE_RECURRENT) return CK_DELTA_RULE_SEGMENT;
  if (form == CK_DELTA_RULE_PARALLEL) return tokens > 0 ? tokens : 1;
  return chunk_size > 0 ? chunk_size : CK_DELTA_RULE_CHUNK;
}

long ck_delta_rule_state_count(enum ck_delta_rule_form form, long chunk_size, long tokens) {
  const long stride = ck_delta_rule_stride(form, chunk_size, tokens);
  return (tokens + stride - 1) / stride;
}
