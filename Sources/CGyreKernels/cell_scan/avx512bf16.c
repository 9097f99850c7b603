// Only bfloat16 products differ from the avx512 level.
#if defined(__x86_64__)
#include "plan.h"
#include <immintrin.h>
#include <math.h>
#include <string.h>
#define CK_NAME(name) name##_avx512bf16
#define CELL_ROWS 16
#define CELL_DOT 1
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16"))), apply_to = function)
#include "../common/vmath.h"
#include "body.inc"
#pragma clang attribute pop
#endif
