#include "../common/table_for.h"
#include "ck_evolution.h"

CK_DEFINE_TABLE_FOR(evolution)
