#if defined(__x86_64__)
#include <immintrin.h>
#define CK_LEVEL avx512
#include "../common/level.h"
CK_LEVEL_BEGIN
#include "body.inc"
CK_LEVEL_END
#endif
