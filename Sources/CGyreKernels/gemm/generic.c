// 4 x 8 tile: 8 sums, 2 columns and a splat fit the 16 registers of any 128-bit machine.
#define CK_LEVEL generic
#include "../common/level.h"
#include "../common/vmath.h"
#include "kernel.h"
#include <string.h>

#define MICRO_ROWS 4
#define MICRO_VECTORS 2
#pragma clang fp contract(fast)
CK_LEVEL_BEGIN
#include "body.inc"
CK_LEVEL_END
