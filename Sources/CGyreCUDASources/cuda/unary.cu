// One function of Unary.Kind, its derivative, and the gated unit made of it. Compiled once for each
// function that is used.
// Variants: KIND=0..19
#include "functions.cuh"

#ifndef KIND
#define KIND SILU
#endif

GYRE_KERNEL unary(gyre_unary_args a) {
  bool wide = is_wide(a.x) && is_wide(a.y);
  GYRE_EACH_EIGHT(i, a.count) {
    float x[8];
    load8(a.x, i, a.count, wide, x);
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = value<KIND>(x[j]);
    store8(a.y, i, a.count, wide, x);
  }
}

GYRE_KERNEL unary_backward(gyre_unary_args a) {
  bool wide = is_wide(a.x) && is_wide(a.y) && is_wide(a.dy);
  GYRE_EACH_EIGHT(i, a.count) {
    float x[8], d[8];
    load8(a.x, i, a.count, wide, x);
    load8(a.dy, i, a.count, wide, d);
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = slope<KIND>(x[j]) * d[j];
    store8(a.y, i, a.count, wide, x);
  }
}

GYRE_KERNEL gated_unit(gyre_glu_args a) {
  long count = a.rows * a.columns;
  bool wide = a.columns % 8 == 0 && is_wide(a.x) && is_wide(a.y);
  if (wide) {
    GYRE_EACH_EIGHT(i, count) {
      long row = i / a.columns, at = row * a.columns + i;
      float x[8], up[8];
      load8(a.x, at, x);
      load8(a.x, at + a.columns, up);
#pragma unroll
      for (int j = 0; j < 8; j++) x[j] = value<KIND>(x[j]) * up[j];
      store8(a.y, i, x);
    }
    return;
  }
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < count;
       i += (long)gridDim.x * blockDim.x) {
    long at = i / a.columns * a.columns + i;
    store(a.y, i, value<KIND>(load(a.x, at)) * load(a.x, at + a.columns));
  }
}

GYRE_KERNEL gated_unit_backward(gyre_glu_args a) {
  long count = a.rows * a.columns;
  bool wide = a.columns % 8 == 0 && is_wide(a.x) && is_wide(a.dy) && is_wide(a.dx);
  if (wide) {
    GYRE_EACH_EIGHT(i, count) {
      long at = i / a.columns * a.columns + i;
      float x[8], up[8], d[8], dg[8];
      load8(a.x, at, x);
      load8(a.x, at + a.columns, up);
      load8(a.dy, i, d);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        dg[j] = d[j] * up[j] * slope<KIND>(x[j]);
        up[j] = d[j] * value<KIND>(x[j]);
      }
      store8(a.dx, at, dg);
      store8(a.dx, at + a.columns, up);
    }
    return;
  }
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < count;
       i += (long)gridDim.x * blockDim.x) {
    long at = i / a.columns * a.columns + i;
    float x = load(a.x, at), d = load(a.dy, i);
    store(a.dx, at, d * load(a.x, at + a.columns) * slope<KIND>(x));
    store(a.dx, at + a.columns, d * value<KIND>(x));
  }
}
