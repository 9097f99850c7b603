#include "../common/table_for.h"
#include "ck_pointwise.h"

CK_DEFINE_TABLE_WITH_BF16_FOR(pointwise)
