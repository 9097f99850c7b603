#if defined(__x86_64__)
#define CK_LEVEL avx2
#include "../common/level.h"
#include "plan.h"
#define CELL_ROWS 6
CK_LEVEL_BEGIN
#include "../common/vmath.h"
#include "body.inc"
CK_LEVEL_END
#endif
