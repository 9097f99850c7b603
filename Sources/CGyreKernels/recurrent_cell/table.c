#include "../common/table_for.h"
#include "ck_recurrent_cell.h"

CK_DEFINE_TABLE_FOR(recurrent_cell)
