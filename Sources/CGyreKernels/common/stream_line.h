// Lines of rounded numbers past the caches. clang makes a plain store of a streamed one of bfloat16, so the type is
// hidden from it. For level files that have AVX-512.
#pragma once
#include <immintrin.h>

static inline __attribute__((always_inline, unused)) __m512i ck_hidden(__m512i v) {
  __asm__("" : "+v"(v));
  return v;
}

// `line` begins one.
static inline __attribute__((always_inline, unused)) void ck_stream_line(void *line, __m512i v) {
  _mm512_stream_si512(line, ck_hidden(v));
}
