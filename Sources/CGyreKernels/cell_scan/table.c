// Which kernels a level gets.
#include "ck_cell_scan.h"

#define DECLARE(level)                                                           \
  void ck_cell_scan_forward_##level(const struct ck_cell_scan_forward_args *);    \
  void ck_cell_scan_backward_##level(const struct ck_cell_scan_backward_args *);  \
  static const struct ck_cell_scan_table level##_table = {                        \
      ck_cell_scan_forward_##level, ck_cell_scan_backward_##level};

DECLARE(generic)
#if defined(__x86_64__)
DECLARE(avx2)
DECLARE(avx512)
DECLARE(avx512bf16)
DECLARE(amx)

// float32 kernels of one level, bfloat16 ones of another.
#define MIXED(name, level)                                                                                   \
  static const struct ck_cell_scan_table *name##_by(const struct ck_cell_scan_shape *s) {                    \
    return s->precision == CK_CELL_BFLOAT16 ? &level##_table : &avx512_table;                                \
  }                                                                                                          \
  static void name##_forward(const struct ck_cell_scan_forward_args *a) { name##_by(&a->shape)->forward(a); } \
  static void name##_backward(const struct ck_cell_scan_backward_args *a) {                                  \
    name##_by(&a->shape)->backward(a);                                                                       \
  }                                                                                                          \
  static const struct ck_cell_scan_table name##_table = {name##_forward, name##_backward};
MIXED(mixed_dot, avx512bf16)
MIXED(mixed_tiles, amx)
#elif defined(__aarch64__)
DECLARE(neon)
#endif

long ck_cell_gate_count(enum ck_cell cell) {
  static const long counts[] = {[CK_CELL_RNN_TANH] = 1, [CK_CELL_RNN_RELU] = 1, [CK_CELL_GRU] = 3,
                                [CK_CELL_GRU_RESET_BEFORE] = 3, [CK_CELL_LSTM] = 4,
                                [CK_CELL_SLSTM] = 4};
  return counts[cell];
}

bool ck_cell_scan_table_for(enum ck_level level, struct ck_cell_scan_table *out) {
  if (!ck_level_available(level)) return false;
  switch (level) {
#if defined(__x86_64__)
    case CK_LEVEL_AVX2: *out = avx2_table; return true;
    case CK_LEVEL_AVX512: *out = avx512_table; return true;
    case CK_LEVEL_AVX512BF16: *out = mixed_dot_table; return true;
    case CK_LEVEL_AMX: *out = mixed_tiles_table; return true;
#elif defined(__aarch64__)
    case CK_LEVEL_NEON: *out = neon_table; return true;
#endif
    case CK_LEVEL_GENERIC: *out = generic_table; return true;
    default: return false;
  }
}
