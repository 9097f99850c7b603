#if defined(__x86_64__)
#define CK_LEVEL avx2
#include "../common/level.h"
#include "kernel.h"
#include <immintrin.h>
#define CK_BLOCKS_SIGNED 1
CK_LEVEL_BEGIN
#include "body.inc"
CK_LEVEL_END

const struct ck_blocks_level ck_blocks_level_avx2 = {
    .level = CK_LEVEL_AVX2,
    .few_rows = 16,
    .quantize = CK_NAME(quantize),
    .dot = CK_NAME(dot),
    .unpack = CK_NAME(unpack),
};
#endif
