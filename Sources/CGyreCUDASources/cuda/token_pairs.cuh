// What makers of operands share: gates, a thread's pairs of a vector, and where an operand is made.
#pragma once
#include "functions.cuh"
#include "token_stream.cuh"

// Called, not copied to every place: these are long.
static __device__ __noinline__ float unary(int function, float x) {
  switch (function) {
    case RELU: return value<RELU>(x);
    case RELU_SQUARED: return value<RELU_SQUARED>(x);
    case SILU: return value<SILU>(x);
    case GELU_TANH: return value<GELU_TANH>(x);
    case GELU: return value<GELU>(x);
    case SIGMOID: return value<SIGMOID>(x);
    case TANH: return value<TANH>(x);
    case EXP: return value<EXP>(x);
    case SOFTPLUS: return value<SOFTPLUS>(x);
    case SQUARE: return value<SQUARE>(x);
    default: return x;
  }
}
// The function of a gate, where it is a usual one: calls cost registers.
GYRE_DEVICE bool is_usual(int function) {
  return function < 0 || function == SILU || function == SIGMOID;
}
GYRE_DEVICE float usual(int function, float x) {
  if (function < 0) return x;
  float y = quick_sigmoid(x);
  return function == SILU ? x * y : y;
}
GYRE_DEVICE float2 gate_two(int function, float2 x) {
  return make_float2(usual(function, x.x), usual(function, x.y));
}
GYRE_DEVICE float2 times(float2 x, float2 y) { return make_float2(x.x * y.x, x.y * y.y); }
GYRE_DEVICE float2 times(float2 x, float y) { return make_float2(x.x * y, x.y * y); }
GYRE_DEVICE float2 plus(float2 x, float2 y) { return make_float2(x.x + y.x, x.y + y.y); }
GYRE_DEVICE float2 plus(float2 x, float y) { return make_float2(x.x + y, x.y + y); }

#define RUN 128  // elements of a warp: two of a lane, and two more 64 behind
// First of the two elements of a thread's first pair, and from there to pair j: STEP elements of all
// threads are two pairs.
#define STEP (RUN * WARPS)
GYRE_DEVICE int first_pair() {
  int thread = this_thread();
  return (thread >> 5) * RUN + (thread & 31) * 2;
}
GYRE_DEVICE constexpr int pair_after(int j) { return (j >> 1) * STEP + (j & 1) * (RUN / 2); }
#define PAIRS 4       // of a thread that are usual: 2048 elements
#define MOST_PAIRS 8  // of a norm

// A thread's pairs of a vector from element `own` on. What is late alone is asked for again.
struct Source {
  const char *from;
  unsigned stamp;
  int left;
  GYRE_DEVICE Source(const gyre_token_vector &v, long b, int own, int size, unsigned base)
      : from(place(v, b, own)), stamp(base + v.phase), left(size - own) {}
  template <int N> GYRE_DEVICE void take(float2 (&x)[N]) const {
    StampedTwo s[N];
    ask(s);
    get(s, x);
  }
  template <int N> GYRE_DEVICE void ask(StampedTwo (&s)[N]) const {
#pragma unroll
    for (int j = 0; j < N; j++) {
      int e = pair_after(j);
      s[j].x = s[j].y = 0.f, s[j].stamp_x = s[j].stamp_y = stamp;
      if (e < left) s[j] = read_two(from + e * 8);
    }
  }
  template <int N> GYRE_DEVICE void get(StampedTwo (&s)[N], float2 (&x)[N]) const {
    for (int waits = 0;; wait_again(waits)) {
      bool late = false;
#pragma unroll
      for (int j = 0; j < N; j++) late |= !s[j].has(stamp);
      if (!late) break;
#pragma unroll
      for (int j = 0; j < N; j++)
        if (!s[j].has(stamp)) s[j] = read_two(from + pair_after(j) * 8);
    }
#pragma unroll
    for (int j = 0; j < N; j++) x[j] = make_float2(s[j].x, s[j].y);
  }
};
template <int N>
GYRE_DEVICE void take_pairs(
    const gyre_token_vector &v, long b, int own, int size, unsigned base, float2 (&x)[N]) {
  Source(v, b, own, size, base).take(x);
}
// Past the first-level cache: beside the ring it holds little more than the stack.
GYRE_DEVICE float2 read_once(const float *p) {
  float2 x;
  asm volatile("ld.global.L1::no_allocate.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "l"(p));
  return x;
}
// The same of parameters; absent: `otherwise`.
template <int N>
GYRE_DEVICE void load_pairs(const float *p, int own, int size, float otherwise, float2 (&x)[N]) {
  int left = p ? size - own : 0;
  p += own;
#pragma unroll
  for (int j = 0; j < N; j++) {
    int e = pair_after(j);
    x[j] = make_float2(otherwise, otherwise);
    if (e < left) x[j] = read_once(p + e);
  }
}
// Of parameters that repeat after RUN elements or a power of two below.
template <int N>
GYRE_DEVICE void load_repeated(
    const float *p, int own, int period, float otherwise, float2 (&x)[N]) {
  float2 y[2];
#pragma unroll
  for (int j = 0; j < 2; j++)
    y[j] = p ? read_once(p + ((own + pair_after(j)) & (period - 1))) : make_float2(otherwise, otherwise);
#pragma unroll
  for (int j = 0; j < N; j++) x[j] = y[j & 1];
}

// One operand of a phase for one sequence. Makers are called and find it anew: registers are theirs alone.
struct Making {
  const gyre_token_phase &p;
  const gyre_token_operand &o;
  long b;
  unsigned base;
  int plane, stride;  // from operand to operand
  char *to;
  bool waits;
  GYRE_DEVICE Making(int which, int b)
      : p(phase_now()), o(p.operand[which]), b(b), base(TOKEN_WORD(base)), plane(plane_of(o.size)),
        stride(M * PARTS * plane), to(operands_of_block() + o.offset + b * PARTS * plane),
        waits(which == 0 && b == 0) {}
  // For a phase's first one a barrier behind which nearly all numbers of the phase before are there: what was
  // there earlier is asked for ahead of it.
  GYRE_DEVICE void await_numbers() const {
    if (!waits) return;
    // By a warp that has seldom outputs to end, and so is here first.
    if (p.enough && this_thread() == GYRE_TOKEN_THREADS - 32) await_count(TOKEN_SHARED.counts + p.awaited, p.enough);
    block_barrier();
  }
};
