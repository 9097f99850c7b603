// Only bfloat16 products differ from the avx512 level.
#if defined(__x86_64__)
#define CK_LEVEL avx512bf16
#include "../common/level.h"
#include "plan.h"
#include <immintrin.h>
#define CELL_ROWS 16
#define CELL_DOT 1
CK_LEVEL_BEGIN
#include "../common/vmath.h"
#include "body.inc"
CK_LEVEL_END
#endif
