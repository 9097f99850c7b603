#if defined(__aarch64__)
#define CK_LEVEL neon
#include "../common/level.h"
#include "ck_attention.h"
CK_LEVEL_BEGIN
#include "../common/tile_gemm.h"
#include "../common/vmath.h"
#include "body.inc"
CK_LEVEL_END
#endif
