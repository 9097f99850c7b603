// What the levels and the table of the delta rule share.
#pragma once
#include "ck_delta_rule.h"

// Tokens a chunk when the caller does not say, and tokens between saved states of the token loop.
enum { CK_DELTA_RULE_CHUNK = 64, CK_DELTA_RULE_SEGMENT = 32 };

/// Tokens from one saved state to the next.
long ck_delta_rule_stride(enum ck_delta_rule_form form, long chunk_size, long tokens);
