// minGRU alone, whose arrays may be bfloat16; the rest is the avx512 level's.
#if defined(__x86_64__)
#include <immintrin.h>
#define CK_LEVEL avx512bf16
#include "../common/level.h"
CK_LEVEL_BEGIN
#include "min_gru_body.inc"

void ck_diagonal_scan_put_bf16(struct ck_diagonal_scan_table *out) {
  out->min_gru_forward = min_gru_forward;
  out->min_gru_backward = min_gru_backward;
}
CK_LEVEL_END
#endif
