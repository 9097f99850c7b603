// Compiles one kernel body for one instruction level. A level file reads:
//
//     #define CK_LEVEL avx512
//     #include "../common/level.h"
//     CK_LEVEL_BEGIN
//     #include "body.inc"
//     CK_LEVEL_END
//
// and every function that body.inc defines is named CK_NAME(foo) -> foo_avx512.
// CK_LANES is the number of floats in a vector register of the level.
#pragma once
#define CK_PASTE2(a, b) a##_##b
#define CK_PASTE(a, b) CK_PASTE2(a, b)
#define CK_NAME(name) CK_PASTE(name, CK_LEVEL)

#define CK_LEVEL_ID_generic 0
#define CK_LEVEL_ID_avx2 1
#define CK_LEVEL_ID_avx512 2
#define CK_LEVEL_ID_avx512bf16 3
#define CK_LEVEL_ID_amx 4
#define CK_LEVEL_ID_neon 5
#define CK_LEVEL_ID CK_PASTE(CK_LEVEL_ID, CK_LEVEL)

#if CK_LEVEL_ID == 1
#define CK_LANES 8
#define CK_LEVEL_BEGIN _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c\"))), apply_to = function)")
#define CK_LEVEL_END _Pragma("clang attribute pop")
#elif CK_LEVEL_ID == 2
#define CK_LANES 16
#define CK_LEVEL_BEGIN _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq\"))), apply_to = function)")
#define CK_LEVEL_END _Pragma("clang attribute pop")
#elif CK_LEVEL_ID == 3
#define CK_LANES 16
#define CK_LEVEL_BEGIN _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni\"))), apply_to = function)")
#define CK_LEVEL_END _Pragma("clang attribute pop")
#elif CK_LEVEL_ID == 4 && defined(GYRE_EMULATED_TILES)
#include "emulated_tiles.h"
#define CK_LANES 16
#define CK_LEVEL_BEGIN _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni\"))), apply_to = function)")
#define CK_LEVEL_END _Pragma("clang attribute pop")
#elif CK_LEVEL_ID == 4
#define CK_LANES 16
#define CK_LEVEL_BEGIN _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,amx-tile,amx-bf16,amx-int8\"))), apply_to = function)")
#define CK_LEVEL_END _Pragma("clang attribute pop")
#elif CK_LEVEL_ID == 5
#define CK_LANES 4
#define CK_LEVEL_BEGIN
#define CK_LEVEL_END
#else
#define CK_LANES 4
#define CK_LEVEL_BEGIN
#define CK_LEVEL_END
#endif
