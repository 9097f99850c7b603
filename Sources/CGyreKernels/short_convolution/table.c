#include "../common/table_for.h"
#include "ck_short_convolution.h"

CK_DEFINE_TABLE_WITH_BF16_FOR(short_convolution)
