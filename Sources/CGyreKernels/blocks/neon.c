#if defined(__aarch64__)
#define CK_LEVEL neon
#include "../common/level.h"
#include "kernel.h"
#define CK_BLOCKS_SIGNED 1
CK_LEVEL_BEGIN
#include "body.inc"
CK_LEVEL_END

const struct ck_blocks_level ck_blocks_level_neon = {
    .level = CK_LEVEL_NEON,
    .few_rows = 16,
    .quantize = CK_NAME(quantize),
    .dot = CK_NAME(dot),
    .unpack = CK_NAME(unpack),
};
#endif
