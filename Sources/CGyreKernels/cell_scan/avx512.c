#if defined(__x86_64__)
#define CK_LEVEL avx512
#include "../common/level.h"
#include "plan.h"
#include <immintrin.h>
#define CELL_ROWS 16
CK_LEVEL_BEGIN
#include "../common/vmath.h"
#include "body.inc"
CK_LEVEL_END
#endif
