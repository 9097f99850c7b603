// Element-wise kernels. Bytes moved bound all of them: eight elements a thread in 16-byte pieces,
// element types of every operand chosen at run time, arithmetic in float32.
#include "prelude.cuh"

GYRE_KERNEL fill(gyre_fill_args a) {
  long step = (long)gridDim.x * blockDim.x;
  long first = (long)blockIdx.x * blockDim.x + threadIdx.x;
  if (is_wide(a.y)) {
    float x[8];
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = (float)a.value;
    for (long i = first * 8; i < a.count; i += step * 8) store8(a.y, i, a.count, true, x);
    return;
  }
  for (long i = first; i < a.count; i += step) {
    switch (a.y.dtype) {
      case GYRE_F64: ((double *)a.y.data)[i] = a.value; break;
      case GYRE_I32: ((int *)a.y.data)[i] = (int)a.value; break;
      case GYRE_I64: ((long *)a.y.data)[i] = (long)a.value; break;
      case GYRE_I8: ((signed char *)a.y.data)[i] = (signed char)a.value; break;
      case GYRE_U8: ((unsigned char *)a.y.data)[i] = (unsigned char)a.value; break;
      default: store(a.y, i, (float)a.value);
    }
  }
}

GYRE_DEVICE double load_any(const gyre_array &a, long i) {
  switch (a.dtype) {
    case GYRE_F64: return ((const double *)a.data)[i];
    case GYRE_I32: return ((const int *)a.data)[i];
    case GYRE_I64: return (double)((const long *)a.data)[i];
    case GYRE_I8: return ((const signed char *)a.data)[i];
    case GYRE_U8: return ((const unsigned char *)a.data)[i];
    default: return load(a, i);
  }
}
// Towards zero, saturating, NaN to 0.
GYRE_DEVICE double clamped(double x, double low, double high) {
  return x != x ? 0. : fmin(fmax(trunc(x), low), high);
}

GYRE_KERNEL cast(gyre_cast_args a) {
  if (a.x.dtype <= GYRE_F16 && a.y.dtype <= GYRE_F16) {
    bool wide = is_wide(a.x) && is_wide(a.y);
    GYRE_EACH_EIGHT(i, a.count) {
      float x[8];
      load8(a.x, i, a.count, wide, x);
      store8(a.y, i, a.count, wide, x);
    }
    return;
  }
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < a.count;
       i += (long)gridDim.x * blockDim.x) {
    double x = load_any(a.x, i);
    switch (a.y.dtype) {
      case GYRE_F64: ((double *)a.y.data)[i] = x; break;
      case GYRE_I32: ((int *)a.y.data)[i] = (int)clamped(x, -2147483648., 2147483647.); break;
      case GYRE_I64: ((long *)a.y.data)[i] = (long)clamped(x, -9e18, 9e18); break;
      case GYRE_I8: ((signed char *)a.y.data)[i] = (signed char)clamped(x, -128., 127.); break;
      case GYRE_U8: ((unsigned char *)a.y.data)[i] = (unsigned char)clamped(x, 0., 255.); break;
      default: store(a.y, i, (float)x);
    }
  }
}

GYRE_KERNEL affine(gyre_affine_args a) {
  bool wide = is_wide(a.x) && is_wide(a.y);
  GYRE_EACH_EIGHT(i, a.count) {
    float x[8];
    load8(a.x, i, a.count, wide, x);
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = x[j] * a.scale + a.shift;
    store8(a.y, i, a.count, wide, x);
  }
}

// Where element i of the output reads an operand.
GYRE_DEVICE long place(const gyre_operand &o, const gyre_binary_args &a, long i) {
  if (o.mode == GYRE_SAME) return i;
  if (o.mode == GYRE_PERIODIC) {
    if (a.count >> 32) return i / o.inner % o.middle;
    return (unsigned)i / (unsigned)o.inner % (unsigned)o.middle;
  }
  long at = 0;
  for (int d = a.rank - 1; d >= 0; d--) {
    at += i % a.shape[d] * o.stride[d];
    i /= a.shape[d];
  }
  return at;
}

// Eight elements of an operand for eight elements of the output.
GYRE_DEVICE void load_operand(
    const gyre_operand &o, const gyre_binary_args &a, long i, bool wide, float (&x)[8]) {
  if (o.mode == GYRE_SAME) {
    load8(o.array, i, a.count, wide, x);
    return;
  }
  if (o.mode == GYRE_PERIODIC && i + 8 <= a.count) {
    if (o.inner % 8 == 0 || o.middle == 1) {
      float one = load(o.array, o.middle == 1 ? 0 : place(o, a, i));
#pragma unroll
      for (int j = 0; j < 8; j++) x[j] = one;
      return;
    }
    if (o.inner == 1 && o.middle % 8 == 0 && is_wide(o.array)) {
      load8(o.array, place(o, a, i), x);
      return;
    }
  }
#pragma unroll
  for (int j = 0; j < 8; j++) x[j] = i + j < a.count ? load(o.array, place(o, a, i + j)) : 1.f;
}

GYRE_DEVICE float combine(int kind, float x, float y) {
  switch (kind) {
    case 0: return x + y;
    case 1: return x - y;
    case 2: return x * y;
    case 3: return x / y;
    case 4: return x != x || y != y ? __int_as_float(0x7fc00000) : fmaxf(x, y);
    default: return x != x || y != y ? __int_as_float(0x7fc00000) : fminf(x, y);
  }
}

template <int KIND> GYRE_DEVICE void combine_all(const gyre_binary_args &a) {
  bool wide_a = is_wide(a.a.array), wide_b = is_wide(a.b.array), wide_y = is_wide(a.y);
  if (a.a.mode == GYRE_SAME && a.b.mode == GYRE_SAME && wide_a && wide_b && wide_y &&
      a.a.array.dtype == GYRE_BF16 && a.b.array.dtype == GYRE_BF16 && a.y.dtype == GYRE_BF16) {
    // Sums of activations and of their gradients; what is no multiple of eight is left to the rest.
    long last = a.count & ~7l;
    GYRE_EACH_EIGHT(i, last) {
      float x[8], y[8];
      get8<true>(a.a.array, i, x);
      get8<true>(a.b.array, i, y);
#pragma unroll
      for (int j = 0; j < 8; j++) x[j] = combine(KIND, x[j], y[j]);
      put8<true>(a.y, i, x);
    }
    if (last == a.count || blockIdx.x || threadIdx.x) return;
    for (long i = last; i < a.count; i++)
      store(a.y, i, combine(KIND, load(a.a.array, i), load(a.b.array, i)));
    return;
  }
  GYRE_EACH_EIGHT(i, a.count) {
    float x[8], y[8];
    load_operand(a.a, a, i, wide_a, x);
    load_operand(a.b, a, i, wide_b, y);
#pragma unroll
    for (int j = 0; j < 8; j++) x[j] = combine(KIND, x[j], y[j]);
    store8(a.y, i, a.count, wide_y, x);
  }
}

GYRE_KERNEL binary(gyre_binary_args a) {
  switch (a.kind) {
    case 0: combine_all<0>(a); break;
    case 1: combine_all<1>(a); break;
    case 2: combine_all<2>(a); break;
    case 3: combine_all<3>(a); break;
    case 4: combine_all<4>(a); break;
    default: combine_all<5>(a);
  }
}

// A cotangent to the operand that was chosen, the left one of equals.
GYRE_KERNEL choose(gyre_binary_args a) {
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < a.count;
       i += (long)gridDim.x * blockDim.x) {
    float x = load(a.a.array, place(a.a, a, i)), y = load(a.b.array, place(a.b, a, i));
    bool left = a.kind == 4 ? x >= y : x <= y;
    float d = load(a.dy, i);
    store(a.y, i, left ? d : 0.f);
    store(a.db, i, left ? 0.f : d);
  }
}
