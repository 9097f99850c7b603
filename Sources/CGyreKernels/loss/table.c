#include "../common/table_for.h"
#include "ck_loss.h"

CK_DEFINE_TABLE_FOR(loss)
