#include "../common/table_for.h"
#include "ck_diagonal_scan.h"

#define FILL(level)                                                          \
  void ck_diagonal_scan_fill_##level(struct ck_diagonal_scan_table *);       \
  static bool fill_##level(struct ck_diagonal_scan_table *out) {             \
    ck_diagonal_scan_fill_##level(out);                                      \
    return true;                                                             \
  }

FILL(generic)
#if defined(__x86_64__)
FILL(avx2)
FILL(avx512)
void ck_diagonal_scan_fill_min_gru_avx512bf16(struct ck_diagonal_scan_table *);
static bool fill_avx512bf16(struct ck_diagonal_scan_table *out) {
  fill_avx512(out);
  ck_diagonal_scan_fill_min_gru_avx512bf16(out);
  return true;
}
static bool fill_amx(struct ck_diagonal_scan_table *out) { return fill_avx512bf16(out); }
#elif defined(__aarch64__)
FILL(neon)
#endif

CK_DEFINE_TABLE_FOR_EACH_LEVEL(diagonal_scan)
