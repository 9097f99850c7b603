// Products of bfloat16; float32 is the avx512 level's.
#if defined(__x86_64__)
#include <immintrin.h>
#define CK_LEVEL amx
#include "../common/level.h"
CK_LEVEL_BEGIN
#include "body.inc"
CK_LEVEL_END
#endif
