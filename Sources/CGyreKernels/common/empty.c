#include "ck_common.h"
