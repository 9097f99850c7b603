#define CK_LEVEL generic
#include "../common/level.h"
#include "plan.h"
#define CELL_ROWS 2
CK_LEVEL_BEGIN
#include "../common/vmath.h"
#include "body.inc"
CK_LEVEL_END
