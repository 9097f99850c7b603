#include "../common/table_for.h"
#include "ck_rotary.h"

CK_DEFINE_TABLE_FOR(rotary)
