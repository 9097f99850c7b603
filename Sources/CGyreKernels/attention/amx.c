// Products of bfloat16; float32 is the avx512 level's.
#if defined(__x86_64__)
#include <immintrin.h>
#define CK_LEVEL amx
#include "../common/level.h"
#include "ck_attention.h"
CK_LEVEL_BEGIN
#include "../common/tile_gemm.h"
#include "../common/vmath.h"
#include "body.inc"
CK_LEVEL_END
#endif
