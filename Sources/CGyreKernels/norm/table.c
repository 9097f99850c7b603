#include "../common/table_for.h"
#include "ck_norm.h"

CK_DEFINE_TABLE_WITH_BF16_FOR(norm)
