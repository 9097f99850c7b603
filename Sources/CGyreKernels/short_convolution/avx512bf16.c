#if defined(__x86_64__)
#include <immintrin.h>
#define CK_LEVEL avx512bf16
#include "../common/level.h"
CK_LEVEL_BEGIN
#include "body.inc"

void ck_short_convolution_put_bf16(struct ck_short_convolution_table *table) {
  ck_short_convolution_fill_avx512bf16(table);
}
CK_LEVEL_END
#endif
