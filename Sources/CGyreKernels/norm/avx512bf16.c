#if defined(__x86_64__)
#include <immintrin.h>
#define CK_LEVEL avx512bf16
#include "../common/level.h"
CK_LEVEL_BEGIN
#include "body.inc"

// Derivatives gain nothing from the instructions.
void ck_norm_put_bf16(struct ck_norm_table *table) {
  struct ck_norm_table own;
  ck_norm_fill_avx512bf16(&own);
  table->forward = own.forward;
}
CK_LEVEL_END
#endif
