// 8 x 12 tile: 24 sums, 3 columns and splats of 32 registers.
#if defined(__aarch64__)
#define CK_LEVEL neon
#include "../common/level.h"
#include "../common/vmath.h"
#include "kernel.h"
#include <string.h>

#define MICRO_ROWS 8
#define MICRO_VECTORS 3
#pragma clang fp contract(fast)
CK_LEVEL_BEGIN
#include "body.inc"
CK_LEVEL_END
#endif
