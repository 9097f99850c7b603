// Defines `ck_<family>_table_for` from the per-level functions `ck_<family>_fill_<level>` that the
// level files of the family define. Levels with extra matrix instructions hold the AVX-512 kernels; a family
// with kernels of its own for bfloat16 puts some in their place (CK_DEFINE_TABLE_WITH_BF16_FOR).
#pragma once
#include "ck_common.h"

#if defined(__x86_64__)
#define CK_TABLE_NATIVE(family, put_bf16) \
  void ck_##family##_fill_avx2(struct ck_##family##_table *); \
  void ck_##family##_fill_avx512(struct ck_##family##_table *); \
  static bool ck_##family##_fill_native(enum ck_level level, struct ck_##family##_table *out) { \
    if (level == CK_LEVEL_AVX2) ck_##family##_fill_avx2(out); \
    else if (level == CK_LEVEL_AVX512 || level == CK_LEVEL_AVX512BF16 || level == CK_LEVEL_AMX) \
      ck_##family##_fill_avx512(out); \
    else return false; \
    if (level == CK_LEVEL_AVX512BF16 || level == CK_LEVEL_AMX) put_bf16(out); \
    return true; \
  }
#define CK_DECLARE_BF16(family) void ck_##family##_put_bf16(struct ck_##family##_table *);
#elif defined(__aarch64__)
#define CK_DECLARE_BF16(family)
#define CK_TABLE_NATIVE(family, put_bf16) \
  void ck_##family##_fill_neon(struct ck_##family##_table *); \
  static bool ck_##family##_fill_native(enum ck_level level, struct ck_##family##_table *out) { \
    if (level != CK_LEVEL_NEON) return false; \
    ck_##family##_fill_neon(out); \
    return true; \
  }
#else
#define CK_DECLARE_BF16(family)
#define CK_TABLE_NATIVE(family, put_bf16) \
  static bool ck_##family##_fill_native(enum ck_level level, struct ck_##family##_table *out) { \
    (void)level; (void)out; \
    return false; \
  }
#endif

#define CK_PUT_NOTHING(table) (void)(table)
#define CK_DEFINE_TABLE_FOR(family) CK_DEFINE_TABLE_PUTTING(family, CK_PUT_NOTHING)
#define CK_DEFINE_TABLE_WITH_BF16_FOR(family) \
  CK_DECLARE_BF16(family) \
  CK_DEFINE_TABLE_PUTTING(family, ck_##family##_put_bf16)

#define CK_DEFINE_TABLE_PUTTING(family, put_bf16) \
  void ck_##family##_fill_generic(struct ck_##family##_table *); \
  CK_TABLE_NATIVE(family, put_bf16) \
  bool ck_##family##_table_for(enum ck_level level, struct ck_##family##_table *out) { \
    if (level != CK_LEVEL_GENERIC) return ck_##family##_fill_native(level, out); \
    ck_##family##_fill_generic(out); \
    return true; \
  }

// The same for a family whose file defines `fill_<level>` for every level, the ones with extra matrix
// instructions too.
#if defined(__x86_64__)
#define CK_CASES_OF_NATIVE_LEVELS \
  case CK_LEVEL_AVX2: return fill_avx2(out); \
  case CK_LEVEL_AVX512: return fill_avx512(out); \
  case CK_LEVEL_AVX512BF16: return fill_avx512bf16(out); \
  case CK_LEVEL_AMX: return fill_amx(out);
#elif defined(__aarch64__)
#define CK_CASES_OF_NATIVE_LEVELS \
  case CK_LEVEL_NEON: return fill_neon(out);
#else
#define CK_CASES_OF_NATIVE_LEVELS
#endif

#define CK_DEFINE_TABLE_FOR_EACH_LEVEL(family) \
  bool ck_##family##_table_for(enum ck_level level, struct ck_##family##_table *out) { \
    switch (level) { \
    case CK_LEVEL_GENERIC: return fill_generic(out); \
    CK_CASES_OF_NATIVE_LEVELS \
    default: return false; \
    } \
  }
