#if defined(__x86_64__)
#define CK_LEVEL avx2
#include "../common/level.h"
CK_LEVEL_BEGIN
#include "body.inc"
CK_LEVEL_END
#endif
