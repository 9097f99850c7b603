// Weights in blocks of quantised values, byte for byte as GGUF files hold them. Blocks lie at even
// addresses and are read in pairs of bytes. A lane takes sixteen values of a row at a time, in two
// groups of eight whose nibbles share bytes: values FIRST to FIRST + 7 and GAP further on.
// Variants: BLOCK_TYPE=0..7
#include "prelude.cuh"

#define IS_K (BLOCK_TYPE >= 5)
#define IS_FIVE (BLOCK_TYPE == 2 || BLOCK_TYPE == 3)

#if BLOCK_TYPE == 0  // Q4_0: d, nibbles
#define BYTES 18
#define NIBBLES 2
#elif BLOCK_TYPE == 1  // Q4_1: d, m, nibbles
#define BYTES 20
#define NIBBLES 4
#elif BLOCK_TYPE == 2  // Q5_0: d, fifth bits, nibbles
#define BYTES 22
#define NIBBLES 6
#elif BLOCK_TYPE == 3  // Q5_1: d, m, fifth bits, nibbles
#define BYTES 24
#define NIBBLES 8
#elif BLOCK_TYPE == 4  // Q8_0: d, bytes
#define BYTES 34
#elif BLOCK_TYPE == 5  // Q4_K: d, m, scales, nibbles
#define BYTES 144
#define NIBBLES 16
#elif BLOCK_TYPE == 6  // Q5_K: d, m, scales, fifth bits, nibbles
#define BYTES 176
#define NIBBLES 48
#else  // Q6_K: nibbles, high bits, scales, d
#define BYTES 210
#endif

#if BLOCK_TYPE == 4
#define GAP 8
#elif BLOCK_TYPE < 4
#define GAP 16
#elif BLOCK_TYPE < 7
#define GAP 32
#else
#define GAP 64
#endif

GYRE_DEVICE unsigned word(const unsigned char *p) {
  const unsigned short *s = (const unsigned short *)p;
  return s[0] | (unsigned)s[1] << 16;
}
GYRE_DEVICE float half_at(const unsigned char *p) {
  return f16_to_float(*(const unsigned short *)p);
}
// The i-th byte of a word less `zero`: the last byte of 2^23, which is exact.
GYRE_DEVICE float value(unsigned w, int i, float zero) {
  return __uint_as_float(__byte_perm(w, 0x4b000000u, 0x7540 + i)) - (8388608.f + zero);
}
// Four bits as the fifth bits of four bytes.
GYRE_DEVICE unsigned fifths(unsigned bits) {
  return ((bits & 15u) * 0x00204081u & 0x01010101u) << 4;
}

#if BLOCK_TYPE == 5 || BLOCK_TYPE == 6
// Scale and minimum of a run of 32 values: six bits each, packed in twelve bytes.
GYRE_DEVICE void run_scales(const unsigned char *q, int run, float &scale, float &minimum) {
  unsigned s, m;
  if (run < 4) {
    s = q[run] & 63u, m = q[run + 4] & 63u;
  } else {
    s = (q[run + 4] & 15u) | (q[run - 4] >> 6) << 4;
    m = (q[run + 4] >> 4) | (q[run] >> 6) << 4;
  }
  scale *= (float)s, minimum *= (float)m;
}
#endif

// The u-th sixteen values of a row, in the order of their two groups, and where the first is.
GYRE_DEVICE long sixteen(const unsigned char *row, long u, float (&x)[16]) {
#if !IS_K
  const unsigned char *block = row + (u >> 1) * BYTES;
  float d = half_at(block);
#if BLOCK_TYPE == 4
  int part = (int)(u & 1) * 16;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    unsigned w = word(block + 2 + part + 4 * j) ^ 0x80808080u;
#pragma unroll
    for (int i = 0; i < 4; i++) x[4 * j + i] = d * value(w, i, 128.f);
  }
#else
  int part = (int)(u & 1) * 8;
#if BLOCK_TYPE == 0 || BLOCK_TYPE == 2
  const float zero = BLOCK_TYPE == 0 ? 8.f : 16.f, m = 0.f;
#else
  const float zero = 0.f, m = half_at(block + 2);
#endif
#if IS_FIVE
  unsigned bits = word(block + NIBBLES - 4) >> part;
#endif
#pragma unroll
  for (int j = 0; j < 2; j++) {
    unsigned w = word(block + NIBBLES + part + 4 * j);
    unsigned low = w & 0x0f0f0f0fu, high = w >> 4 & 0x0f0f0f0fu;
#if IS_FIVE
    low |= fifths(bits >> 4 * j), high |= fifths(bits >> (16 + 4 * j));
#endif
#pragma unroll
    for (int i = 0; i < 4; i++) {
      x[4 * j + i] = d * value(low, i, zero) + m;
      x[8 + 4 * j + i] = d * value(high, i, zero) + m;
    }
  }
#endif
  return (u >> 1) * 32 + part;
#else
  const unsigned char *block = row + (u >> 4) * BYTES;
  int part = (int)(u & 3) * 8;
#if BLOCK_TYPE == 7
  int side = (int)(u >> 3) & 1, quarter = (int)(u >> 2) & 1;
  const signed char *scales = (const signed char *)block + 192 + side * 8 + quarter * 2 + part / 16;
  float d = half_at(block + 208), s = d * (float)scales[0], t = d * (float)scales[4];
#pragma unroll
  for (int j = 0; j < 2; j++) {
    unsigned w = word(block + side * 64 + quarter * 32 + part + 4 * j);
    unsigned top = word(block + 128 + side * 32 + part + 4 * j) >> 2 * quarter;
    unsigned low = (w & 0x0f0f0f0fu) | (top & 0x03030303u) << 4;
    unsigned high = (w >> 4 & 0x0f0f0f0fu) | (top >> 4 & 0x03030303u) << 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      x[4 * j + i] = s * value(low, i, 32.f);
      x[8 + 4 * j + i] = t * value(high, i, 32.f);
    }
  }
  return (u >> 4) * 256 + side * 128 + quarter * 32 + part;
#else
  int pair = (int)(u >> 2) & 3;
  float s = half_at(block), m = half_at(block + 2), t = s, n = m;
  run_scales(block + 4, 2 * pair, s, m);
  run_scales(block + 4, 2 * pair + 1, t, n);
#pragma unroll
  for (int j = 0; j < 2; j++) {
    unsigned w = word(block + NIBBLES + pair * 32 + part + 4 * j);
    unsigned low = w & 0x0f0f0f0fu, high = w >> 4 & 0x0f0f0f0fu;
#if BLOCK_TYPE == 6
    unsigned bits = word(block + 16 + part + 4 * j) >> 2 * pair;
    low |= (bits & 0x01010101u) << 4, high |= (bits >> 1 & 0x01010101u) << 4;
#endif
#pragma unroll
    for (int i = 0; i < 4; i++) {
      x[4 * j + i] = s * value(low, i, 0.f) - m;
      x[8 + 4 * j + i] = t * value(high, i, 0.f) - n;
    }
  }
  return (u >> 4) * 256 + pair * 64 + part;
#endif
#endif
}

// y = x W' + b for at most four rows of x. A warp a row of W.
template <int M> GYRE_DEVICE void product(const gyre_block_args &a) {
  long warp = ((long)blockIdx.x * blockDim.x + threadIdx.x) >> 5;
  int lane = threadIdx.x & 31;
  long units = a.columns / 16, bytes = a.columns / (IS_K ? 256 : 32) * BYTES;
  for (long n = warp; n < a.rows; n += (long)gridDim.x * blockDim.x >> 5) {
    const unsigned char *row = (const unsigned char *)a.w + n * bytes;
    float sum[M];
#pragma unroll
    for (int m = 0; m < M; m++) sum[m] = 0.f;
#pragma unroll 2
    for (long u = lane; u < units; u += 32) {
      float w[16];
      long first = sixteen(row, u, w);
#pragma unroll
      for (int m = 0; m < M; m++) {
        float p[8], q[8];
        load8(a.x, m * a.columns + first, p);
        load8(a.x, m * a.columns + first + GAP, q);
#pragma unroll
        for (int i = 0; i < 8; i++) sum[m] += p[i] * w[i] + q[i] * w[8 + i];
      }
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
      float total = warp_sum(sum[m]);
      if (lane == 0) store(a.y, m * a.rows + n, total + load_or(a.bias, n, 0.f));
    }
  }
}

GYRE_KERNEL block_gemv(gyre_block_args a) {
  switch (a.count) {
    case 1: product<1>(a); break;
    case 2: product<2>(a); break;
    case 3: product<3>(a); break;
    default: product<4>(a);
  }
}

// Rows of W, all of them in order or those that tokens name, unpacked into y.
GYRE_KERNEL block_rows(gyre_block_args a) {
  long units = a.columns / 16, bytes = a.columns / (IS_K ? 256 : 32) * BYTES;
  long step = (long)gridDim.x * blockDim.x;
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < a.count * units; i += step) {
    long r = i / units;
    long from = a.tokens ? (long)a.tokens[r] : r;
    float x[16], low[8], high[8];
    long first = sixteen((const unsigned char *)a.w + from * bytes, i % units, x);
#pragma unroll
    for (int j = 0; j < 8; j++) low[j] = x[j], high[j] = x[8 + j];
    store8(a.y, r * a.columns + first, low);
    store8(a.y, r * a.columns + first + GAP, high);
  }
}
