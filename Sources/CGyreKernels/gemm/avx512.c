// 14 x 32 tile: 28 sums, 2 columns and a splat of 32 registers; 16 loads feed 28 FMAs, and 32
// columns divide the usual widths.
#if defined(__x86_64__)
#define CK_LEVEL avx512
#include "../common/level.h"
#include "../common/vmath.h"
#include "kernel.h"
#include <string.h>

#define MICRO_ROWS 14
#define MICRO_VECTORS 2
#pragma clang fp contract(fast)
CK_LEVEL_BEGIN
#include "body.inc"
CK_LEVEL_END
#endif
