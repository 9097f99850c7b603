#if defined(__aarch64__)
#define CK_LEVEL neon
#include "../common/level.h"
CK_LEVEL_BEGIN
#include "body.inc"
CK_LEVEL_END
#endif
