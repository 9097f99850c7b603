// 6 x 16 tile: 12 sums, 2 columns and a splat of 16 registers; two FMAs a cycle need 10 sums.
#if defined(__x86_64__)
#define CK_LEVEL avx2
#include "../common/level.h"
#include "../common/vmath.h"
#include "kernel.h"
#include <string.h>

#define MICRO_ROWS 6
#define MICRO_VECTORS 2
#pragma clang fp contract(fast)
CK_LEVEL_BEGIN
#include "body.inc"
CK_LEVEL_END
#endif
