// Which kernels a level gets.
#include "ck_cell_scan.h"

#define DECLARE(level)                                                                        \
  void ck_cell_scan_forward_##level(const struct ck_cell_scan_forward_args *);                \
  void ck_cell_scan_backward_##level(const struct ck_cell_scan_backward_args *);              \
  size_t ck_cell_scan_packed_byte_count_##level(const struct ck_cell_scan_shape *);           \
  void ck_cell_scan_pack_forward_##level(const struct ck_cell_scan_shape *, void *);          \
  void ck_cell_scan_pack_backward_##level(const struct ck_cell_scan_shape *, void *);         \
  static const struct ck_cell_scan_table level##_table = {                                    \
      ck_cell_scan_forward_##level, ck_cell_scan_backward_##level,                            \
      ck_cell_scan_packed_byte_count_##level, ck_cell_scan_pack_forward_##level,              \
      ck_cell_scan_pack_backward_##level};

DECLARE(generic)
#if defined(__x86_64__)
DECLARE(avx2)
DECLARE(avx512)
DECLARE(avx512bf16)

static const struct ck_cell_scan_table *by_precision(enum ck_cell_precision precision) {
  return precision == CK_CELL_BFLOAT16 ? &avx512bf16_table : &avx512_table;
}
static void forward_mixed(const struct ck_cell_scan_forward_args *a) {
  by_precision(a->shape.precision)->forward(a);
}
static void backward_mixed(const struct ck_cell_scan_backward_args *a) {
  by_precision(a->shape.precision)->backward(a);
}
static size_t packed_byte_count_mixed(const struct ck_cell_scan_shape *shape) {
  return by_precision(shape->precision)->packed_byte_count(shape);
}
static void pack_forward_mixed(const struct ck_cell_scan_shape *shape, void *packed) {
  by_precision(shape->precision)->pack_forward(shape, packed);
}
static void pack_backward_mixed(const struct ck_cell_scan_shape *shape, void *packed) {
  by_precision(shape->precision)->pack_backward(shape, packed);
}
static const struct ck_cell_scan_table mixed_table = {
    forward_mixed, backward_mixed, packed_byte_count_mixed, pack_forward_mixed, pack_backward_mixed};
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
    case CK_LEVEL_AVX512BF16:
    case CK_LEVEL_AMX: *out = mixed_table; return true;
#elif defined(__aarch64__)
    case CK_LEVEL_NEON: *out = neon_table; return true;
#endif
    case CK_LEVEL_GENERIC: *out = generic_table; return true;
    default: return false;
  }
}
