#include "../common/table_for.h"
#include "ck_optimizer.h"

CK_DEFINE_TABLE_FOR(optimizer)
