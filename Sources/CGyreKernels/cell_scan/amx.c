// bfloat16 products on tiles; float32 is the avx512 level's.
#if defined(__x86_64__)
#include "plan.h"
#include <immintrin.h>
#include <math.h>
#include <string.h>
#define CK_LEVEL amx
#include "../common/level.h"
#define CELL_ROWS 16
#define CELL_AMX 1
CK_LEVEL_BEGIN
#include "../common/half_pairs.h"
#include "../common/tile_configuration.h"
#include "../common/vmath.h"
#include "body.inc"
CK_LEVEL_END
#endif
