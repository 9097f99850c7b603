#include "../common/table_for.h"
#include "ck_mesa.h"

CK_DEFINE_TABLE_FOR(mesa)
