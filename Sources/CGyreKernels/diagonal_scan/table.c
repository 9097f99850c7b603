#include "../common/table_for.h"
#include "ck_diagonal_scan.h"

CK_DEFINE_TABLE_WITH_BF16_FOR(diagonal_scan)
