#if defined(__x86_64__)
#define CK_LEVEL avx512
#include "../common/level.h"
#include "../common/vmath.h"
#include "delta_rule.h"
CK_LEVEL_BEGIN
#include "../common/tile_gemm.h"
#include "body.inc"
CK_LEVEL_END
#endif
