#if defined(__x86_64__)
#define CK_LEVEL avx512bf16
#include "../common/level.h"
#include "kernel.h"
#include <immintrin.h>
#define CK_BLOCKS_SIGNED 0
CK_LEVEL_BEGIN
#include "body.inc"
#include "tiles.inc"
CK_LEVEL_END

const struct ck_blocks_level ck_blocks_level_avx512bf16 = {
    .level = CK_LEVEL_AVX512BF16,
    .few_rows = 7,
    .quantize = CK_NAME(quantize),
    .dot = CK_NAME(dot),
    .tiles = CK_NAME(tiles),
    .unpack = CK_NAME(unpack),
};
#endif
