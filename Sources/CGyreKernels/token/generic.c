#define CK_LEVEL generic
#include "../common/level.h"
CK_LEVEL_BEGIN
#include "body.inc"
CK_LEVEL_END
