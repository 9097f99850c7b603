#include "ck_egg.h"

void ck_egg_fill_generic(struct ck_egg_table *);
void ck_egg_fill_avx2(struct ck_egg_table *);
void ck_egg_fill_avx512(struct ck_egg_table *);
void ck_egg_fill_avx512bf16(struct ck_egg_table *);
void ck_egg_fill_amx(struct ck_egg_table *);
void ck_egg_fill_neon(struct ck_egg_table *);

bool ck_egg_table_for(enum ck_level level, struct ck_egg_table *out) {
  switch (level) {
  case CK_LEVEL_GENERIC: ck_egg_fill_generic(out); return true;
#if defined(__x86_64__)
  case CK_LEVEL_AVX2: ck_egg_fill_avx2(out); return true;
  case CK_LEVEL_AVX512: ck_egg_fill_avx512(out); return true;
  case CK_LEVEL_AVX512BF16: ck_egg_fill_avx512bf16(out); return true;
  case CK_LEVEL_AMX: ck_egg_fill_amx(out); return true;
#elif defined(__aarch64__)
  case CK_LEVEL_NEON: ck_egg_fill_neon(out); return true;
#endif
  default: return false;
  }
}
