// Gated units of bfloat16 arrays; the other kernels are the avx512 level's.
#if defined(__x86_64__)
#include <immintrin.h>
#define CK_LEVEL avx512bf16
#include "../common/level.h"
#include "ck_pointwise.h"
CK_LEVEL_BEGIN
#include "../common/lanes.h"
#include "../common/rough.h"
#include "grain.inc"
#include "slopes.inc"
#include "glu.inc"

void ck_pointwise_put_bf16(struct ck_pointwise_table *table) {
  table->glu = glu;
  table->glu_backward = glu_backward;
}
CK_LEVEL_END
#endif
