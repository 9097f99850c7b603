#if defined(__x86_64__)
#include <immintrin.h>
#define CK_LEVEL avx512bf16
#include "../common/level.h"
CK_LEVEL_BEGIN
#include "body.inc"

// Other derivatives gain nothing from the instructions.
void ck_norm_fill_avx512(struct ck_norm_table *);

static void backward_by_form(const struct ck_norm_args *args) {
  struct ck_norm_table table;
  if (gated_gradient_is_rough(args)) ck_norm_fill_avx512bf16(&table);
  else ck_norm_fill_avx512(&table);
  table.backward(args);
}

void ck_norm_put_bf16(struct ck_norm_table *table) {
  struct ck_norm_table own;
  ck_norm_fill_avx512bf16(&own);
  table->forward = own.forward;
  table->backward = backward_by_form;
}
CK_LEVEL_END
#endif
