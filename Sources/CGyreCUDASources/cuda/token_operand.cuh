// Operands of products in shared memory: every block makes them anew from vectors of a few thousand
// numbers, which it waits for number by number.
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
GYRE_DEVICE float quick_silu(float x) { return x * quick_sigmoid(x); }
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

// How an operand is made; `plan` chooses. Code that a phase walks through once is paid by its length.
enum { ONE_BY_ONE, NORM_OF_ALL, SCALED_LATER, NORM_AND_SHIFT, NORM_OF_GROUPS, COPIED, JOINED };
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
#pragma unroll
    for (int j = 0; j < N; j++) {
      int e = pair_after(j);
      s[j].x = s[j].y = 0.f, s[j].stamp_x = s[j].stamp_y = stamp;
      if (e < left) s[j] = read_two(from + e * 8);
    }
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

GYRE_DEVICE bool lies_at(const void *p, int bytes) { return ((unsigned long)p & (bytes - 1)) == 0; }
// Whether pairs can be read at once.
GYRE_DEVICE bool is_even(const gyre_token_vector &v) {
  return !present(v) || (lies_at(v.data, 16) && (M == 1 || v.stride % 2 == 0) && v.phase >= 0);
}
GYRE_DEVICE bool is_power(int n) { return (n & (n - 1)) == 0; }

// Which way an operand may go. All operands of a shift, which the first makes, are looked at.
GYRE_DEVICE int path_of(const gyre_token_phase &p, int which) {
  const gyre_token_operand &o = p.operand[which];
  if (o.size % 2 || !is_even(o.x) || !is_even(o.z) || (o.gate && !is_usual(o.function)))
    return ONE_BY_ONE;
  if (o.kind == GYRE_TOKEN_ATTENTION)
    return is_even(o.score) && o.value_size % 2 == 0 ? JOINED : ONE_BY_ONE;
  if (o.kind == GYRE_TOKEN_COPY) return COPIED;
  bool even = is_even(o.v) && lies_at(o.weight, 8) && lies_at(o.bias, 8) && lies_at(o.last, 8);
  for (int i = 0; i < p.operands && o.mix; i++)
    even = even && o.size % 4 == 0 && lies_at(p.operand[i].mix, 16);
  if (!even) return ONE_BY_ONE;
  if (o.group == o.size) {
    if (o.period != o.size || present(o.v)) return ONE_BY_ONE;
    if (o.mix) return o.size <= 512 * PAIRS && o.gate == 0 ? NORM_AND_SHIFT : ONE_BY_ONE;
    if (o.size > 512 * MOST_PAIRS || present(o.keep)) return ONE_BY_ONE;
    return which == 0 && !o.centers && !o.bias ? SCALED_LATER : NORM_OF_ALL;
  }
  return o.group <= RUN && o.group >= 2 && is_power(o.group) && !o.mix && !present(o.keep) &&
                 (o.period == o.size || (is_power(o.period) && o.period >= 2 && o.period <= RUN))
             ? NORM_OF_GROUPS
             : ONE_BY_ONE;
}

// x / its norm over all; `inverse` of the size.
template <int N>
GYRE_DEVICE void normalize(const gyre_token_operand &o, int own, int size, float2 (&x)[N]) {
  float *shared = TOKEN_SHARED.sums;
  float inverse = __fdividef(1.f, (float)size);
  if (o.centers) {
    float sum = 0.f;
#pragma unroll
    for (int j = 0; j < N; j++) sum += x[j].x + x[j].y;
    float mean = -team_sum(sum, shared + WARPS) * inverse;
#pragma unroll
    for (int j = 0; j < N; j++)
      if (own + pair_after(j) < size) x[j] = plus(x[j], mean);
  }
  float sum = 0.f;
#pragma unroll
  for (int j = 0; j < N; j++) sum += x[j].x * x[j].x + x[j].y * x[j].y;
  float scale = rsqrtf(team_sum(sum, shared) * inverse + o.epsilon);
#pragma unroll
  for (int j = 0; j < N; j++) x[j] = times(x[j], scale);
}

template <int N, bool GATED> static __device__ __noinline__ void norm_all(int which, int sequence) {
  Making k(which, sequence);
  const gyre_token_operand &o = k.o;
  int size = o.size, gate = GATED ? o.gate : 0, function = o.function, own = first_pair();
  float2 x[N], z[N], weight[N], bias[N];
  load_pairs(o.weight, own, size, 1.f, weight);
  load_pairs(o.bias, own, size, 0.f, bias);
  Source source(o.x, k.b, own, size, k.base);
  if (gate) {
    take_pairs(o.z, k.b, own, size, k.base, z);
#pragma unroll
    for (int j = 0; j < N; j++) z[j] = gate_two(function, z[j]);
  }
  k.await_numbers();
  source.take(x);
  if (gate == 2) {
#pragma unroll
    for (int j = 0; j < N; j++) x[j] = times(x[j], z[j]);
  }
  normalize(o, own, size, x);
#pragma unroll
  for (int j = 0; j < N; j++) {
    int e = own + pair_after(j);
    if (e >= size) continue;
    float2 y = plus(times(x[j], weight[j]), bias[j]);
    if (gate == 1) y = times(y, z[j]);
    put_two(k.to, k.plane, e, y.x, y.y);
  }
}
// A norm without centers and biases: W (s x w) = s (W (x w)), so nobody waits for the sum of squares before the
// products; outputs take the scale.
template <int N, bool GATED> static __device__ __noinline__ void scaled_later(int sequence) {
  Making k(0, sequence);
  const gyre_token_operand &o = k.o;
  int size = o.size, gate = GATED ? o.gate : 0, own = first_pair();
  float inverse = __fdividef(1.f, (float)size), square = 0.f;
  float2 x[N], z[N], weight[N];
  load_pairs(o.weight, own, size, 1.f, weight);
  Source source(o.x, k.b, own, size, k.base);
  if (gate) {
    int function = o.function;
    take_pairs(o.z, k.b, own, size, k.base, z);
#pragma unroll
    for (int j = 0; j < N; j++) z[j] = gate_two(function, z[j]);
  }
  if (gate == 1) {
#pragma unroll
    for (int j = 0; j < N; j++) weight[j] = times(weight[j], z[j]);
  }
  k.await_numbers();
  source.take(x);
#pragma unroll
  for (int j = 0; j < N; j++) {
    if (gate == 2) x[j] = times(x[j], z[j]);
    square += x[j].x * x[j].x + x[j].y * x[j].y;
    int e = own + pair_after(j);
    if (e < size) put_two(k.to, k.plane, e, x[j].x * weight[j].x, x[j].y * weight[j].y);
  }
  square = warp_sum(square) * inverse;
  int thread = this_thread();
  if ((thread & 31) == 0) TOKEN_SHARED.squares[M == 1 ? 0 : k.b][thread >> 5] = square;
}
GYRE_DEVICE float sum_of_eight(const float *p) {
  static_assert(WARPS == 8, "two fours");
  float4 x = ((const float4 *)p)[0], y = ((const float4 *)p)[1];
  return ((x.x + x.y) + (x.z + x.w)) + ((y.x + y.y) + (y.z + y.w));
}
GYRE_DEVICE float later_scale(const gyre_token_operand &o, long b) {
  return rsqrtf(sum_of_eight(TOKEN_SHARED.squares[b]) + o.epsilon);
}
// With token shift: operand i is y + (last - y) * mix of operand i. The mixes wait in the operands' own places,
// which hold as many bytes, so that no registers are theirs.
static __device__ __noinline__ void norm_and_shift(int sequence) {
  Making k(0, sequence);
  const gyre_token_operand &o = k.o;
  char *to = k.to;
  int size = o.size, operands = k.p.operands, own = first_pair();
  const int N = PAIRS, HALF = GYRE_TOKEN_OPERANDS / 2;
#pragma unroll 1
  for (int i = 0; i < operands; i++)
    for (int e = this_thread() * 4; e < size; e += GYRE_TOKEN_THREADS * 4)
      copy_aside<16>(to + i * k.stride + e * 4, (const char *)(k.p.operand[i].mix + e));
  float2 x[N], step[N], weight[N], bias[N];
  load_pairs(o.weight, own, size, 1.f, weight);
  load_pairs(o.bias, own, size, 0.f, bias);
  load_pairs(o.last + k.b * size, own, size, 0.f, step);
  Source source(o.x, k.b, own, size, k.base);
  k.await_numbers();
  source.take(x);
  copies_await();  // for others behind the barrier of the norm
  normalize(o, own, size, x);
#pragma unroll
  for (int j = 0; j < N; j++) {
    x[j] = plus(times(x[j], weight[j]), bias[j]);
    step[j] = plus(step[j], times(x[j], -1.f));
  }
#pragma unroll 1
  for (int first = 0; first < operands; first += HALF) {
    float2 mix[HALF][N];
#pragma unroll
    for (int i = 0; i < HALF; i++)
#pragma unroll
      for (int j = 0; j < N; j++) {
        int e = own + pair_after(j);
        bool exists = first + i < operands && e < size;
        mix[i][j] = exists ? *(const float2 *)(to + i * k.stride + e * 4) : make_float2(0.f, 0.f);
      }
    block_barrier();
#pragma unroll
    for (int i = 0; i < HALF; i++) {
      if (first + i >= operands) continue;
#pragma unroll
      for (int j = 0; j < N; j++) {
        float2 y = plus(x[j], times(step[j], mix[i][j]));
        int e = own + pair_after(j);
        if (e < size) put_two(to + i * k.stride, k.plane, e, y.x, y.y);
      }
    }
    to += HALF * k.stride;
  }
  if (blockIdx.x > 0) return;
#pragma unroll
  for (int j = 0; j < N; j++) {
    int e = own + pair_after(j);
    if (e < size) give(o.keep, k.b, e, k.base, x[j].x), give(o.keep, k.b, e + 1, k.base, x[j].y);
  }
}

// Sums over so many lanes, a power of two.
template <int N> GYRE_DEVICE void add_lanes(float (&x)[N], int lanes) {
#pragma unroll 1
  for (int n = lanes >> 1; n; n >>= 1)
#pragma unroll
    for (int j = 0; j < N; j++) x[j] += __shfl_xor_sync(~0u, x[j], n);
}
// Norms over groups within a warp; 512 N elements at once. PLAIN: without centers, biases, added vectors and gates
// before the norm.
template <int N, bool PLAIN>
static __device__ __noinline__ void norm_groups_of_warps(int which, int sequence) {
  Making k(which, sequence);
  const gyre_token_operand &o = k.o;
  long b = k.b;
  unsigned base = k.base;
  int size = o.size, gate = o.gate, function = o.function;
  int shift = 31 - __clz(o.group), lanes = min(o.group / 2, 32), centers = !PLAIN && o.centers;
  bool whole = o.group == RUN, added = !PLAIN && present(o.v), repeats = o.period != size;
  float inverse = __fdividef(1.f, (float)o.group), epsilon = o.epsilon;
  for (int own = first_pair(), round = 0; round == 0 || (own & -64) < size; own += N * 512, round++) {
    float2 x[N], z[N], v[N], weight[N], bias[N];
    float sums[N];
    if (repeats) {
      load_repeated(o.weight, own, o.period, 1.f, weight);
      if (!PLAIN) load_repeated(o.bias, own, o.period, 0.f, bias);
    } else {
      load_pairs(o.weight, own, size, 1.f, weight);
      if (!PLAIN) load_pairs(o.bias, own, size, 0.f, bias);
    }
    Source source(o.x, b, own, size, base);
    if (gate) {
      take_pairs(o.z, b, own, size, base, z);
#pragma unroll
      for (int j = 0; j < N; j++) {
        z[j] = gate_two(function, z[j]);
        if (PLAIN) weight[j] = times(weight[j], z[j]);
      }
    }
    if (round == 0) k.await_numbers();
    source.take(x);
    if (added) {
      take_pairs(o.v, b, own, size, base, v);
#pragma unroll
      for (int j = 0; j < N; j++) {
        int e = own + pair_after(j);
        if (e < size) v[j] = times(v[j], take(o.score, b, e >> shift, base));
      }
    }
    if (!PLAIN && gate == 2) {
#pragma unroll
      for (int j = 0; j < N; j++) x[j] = times(x[j], z[j]);
    }
    if (centers) {
#pragma unroll
      for (int j = 0; j < N; j++) sums[j] = x[j].x + x[j].y;
      add_lanes(sums, lanes);
#pragma unroll
      for (int j = 0; j < N; j++)
        x[j] = plus(x[j], -inverse * (whole ? sums[j & ~1] + sums[j | 1] : sums[j]));
    }
#pragma unroll
    for (int j = 0; j < N; j++) sums[j] = x[j].x * x[j].x + x[j].y * x[j].y;
    add_lanes(sums, lanes);
#pragma unroll
    for (int j = 0; j < N; j++) {
      int e = own + pair_after(j);
      if (e >= size) continue;
      float square = whole ? sums[j & ~1] + sums[j | 1] : sums[j];
      float2 y = times(x[j], rsqrtf(square * inverse + epsilon));
      y = times(y, weight[j]);
      if (!PLAIN) y = plus(y, bias[j]);
      if (added) y = plus(y, v[j]);
      if (!PLAIN && gate == 1) y = times(y, z[j]);
      put_two(k.to, k.plane, e, y.x, y.y);
    }
  }
}
// A vector as it is.
template <int N> static __device__ __noinline__ void copy_pairs(int which, int sequence) {
  Making k(which, sequence);
  const gyre_token_operand &o = k.o;
  char *to = k.to;
  int size = o.size, plane = k.plane;
  k.await_numbers();
  for (int own = first_pair(); own < size; own += N * 512) {
    float2 x[N];
    take_pairs(o.x, k.b, own, size, k.base, x);
#pragma unroll
    for (int j = 0; j < N; j++) {
      int e = own + pair_after(j);
      if (e < size) put_two(to, plane, e, x[j].x, x[j].y);
    }
  }
}
// Times a gate.
static __device__ __noinline__ void copy_gated(int which, int sequence) {
  Making k(which, sequence);
  const gyre_token_operand &o = k.o;
  long b = k.b;
  unsigned base = k.base;
  char *to = k.to;
  int size = o.size, plane = k.plane;
  k.await_numbers();
  for (int own = first_pair(); own < size; own += MOST_PAIRS * 512) {
    float2 x[MOST_PAIRS], z[MOST_PAIRS];
    take_pairs(o.z, b, own, size, base, z);
    take_pairs(o.x, b, own, size, base, x);
#pragma unroll
    for (int j = 0; j < MOST_PAIRS; j++) {
      int e = own + pair_after(j);
      if (e >= size) continue;
      x[j] = times(x[j], gate_two(o.function, z[j]));
      put_two(to, plane, e, x[j].x, x[j].y);
    }
  }
}

// Splits of an attention by their largest scores: those of a head, then element e of it.
struct Joined {
  float largest, sum;
  float2 y;
  GYRE_DEVICE void start() { largest = -INFINITY, sum = 0.f, y = make_float2(0.f, 0.f); }
  GYRE_DEVICE void add(float top, float weight, float2 x) {
    if (top == -INFINITY) return;
    float all = fmaxf(largest, top), keep = __expf(largest - all), factor = __expf(top - all);
    sum = sum * keep + weight * factor;
    y = plus(times(y, keep), times(x, factor));
    largest = all;
  }
};
static __device__ __noinline__ void join_attention(int which, int sequence) {
  const int N = PAIRS;
  Making k(which, sequence);
  const gyre_token_operand &o = k.o;
  long b = k.b;
  unsigned base = k.base;
  char *to = k.to;
  int size = o.size, splits = o.splits, heads = size / o.value_size, plane = k.plane;
  k.await_numbers();
  gyre_token_vector part = o.x, tops = o.score;
  for (int own = first_pair(); own < size; own += N * 512) {
    Joined joined[N];
#pragma unroll
    for (int j = 0; j < N; j++) joined[j].start();
    for (int s = 0; s < splits; s++) {
      float2 x[N], top[N];
      part.data = (char *)place(o.x, 0, (long)s * size);
      take_pairs(part, b, own, size, base, x);
#pragma unroll
      for (int j = 0; j < N; j++) {
        int e = own + pair_after(j);
        if (e >= size) continue;
        long at = (long)(s * heads + e / o.value_size) * 2;
        top[j] = take_two(tops, b, at, base);
      }
#pragma unroll
      for (int j = 0; j < N; j++)
        if (own + pair_after(j) < size) joined[j].add(top[j].x, top[j].y, x[j]);
    }
#pragma unroll
    for (int j = 0; j < N; j++) {
      int e = own + pair_after(j);
      if (e >= size) continue;
      float2 y = times(joined[j].y, 1.f / joined[j].sum);
      if (o.gate) y = times(y, gate_two(o.function, take_two(o.z, b, e, base)));
      put_two(to, plane, e, y.x, y.y);
    }
  }
}

// Any sizes and places: a warp a group of a norm, a thread an element of the rest.
struct OneByOne {
  const gyre_token_phase &p;
  const gyre_token_operand &o;
  long b;
  unsigned base;
  char *to;
  int plane, stride;

  GYRE_DEVICE float input(int e) const {
    float x = take(o.x, b, e, base);
    return o.gate == 2 ? x * unary(o.function, take(o.z, b, e, base)) : x;
  }
  GYRE_DEVICE void norm_group(int first) const {
    int lane = threadIdx.x & 31;
    float sum = 0.f, square = 0.f;
    if (o.centers)
      for (int i = lane; i < o.group; i += 32) sum += input(first + i);
    float mean = warp_sum(sum) / o.group;
    for (int i = lane; i < o.group; i += 32) {
      float x = input(first + i) - mean;
      square += x * x;
    }
    float scale = 1.f / sqrtf(warp_sum(square) / o.group + o.epsilon);
    for (int i = lane; i < o.group; i += 32) {
      int e = first + i, at = o.period == o.size ? e : e % o.period;
      float y = (input(e) - mean) * scale;
      y = y * (o.weight ? o.weight[at] : 1.f) + (o.bias ? o.bias[at] : 0.f);
      if (present(o.v)) y += take(o.v, b, e, base) * take(o.score, b, e / o.group, base);
      if (o.gate == 1) y *= unary(o.function, take(o.z, b, e, base));
      if (present(o.keep) && blockIdx.x == 0) give(o.keep, b, e, base, y);
      if (!o.mix) {
        put_one(to, plane, e, y);
        continue;
      }
      float step = fresh(o.last + b * o.size + e) - y;
      for (int j = 0; j < p.operands; j++)
        put_one(to + j * stride, plane, e, y + step * p.operand[j].mix[e]);
    }
  }
  GYRE_DEVICE float joined(int e) const {
    int heads = o.size / o.value_size;
    Joined all;
    all.start();
    for (int s = 0; s < o.splits; s++) {
      long at = (long)(s * heads + e / o.value_size) * 2;
      float x = take(o.x, b, (long)s * o.size + e, base);
      all.add(take(o.score, b, at, base), take(o.score, b, at + 1, base), make_float2(x, 0.f));
    }
    return all.y.x / all.sum;
  }
  GYRE_DEVICE void make() const {
    if (o.kind == GYRE_TOKEN_NORM) {
      for (int first = (threadIdx.x >> 5) * o.group; first < o.size; first += WARPS * o.group)
        norm_group(first);
      return;
    }
    for (int e = threadIdx.x; e < o.size; e += GYRE_TOKEN_THREADS) {
      float x = o.kind == GYRE_TOKEN_ATTENTION ? joined(e) : take(o.x, b, e, base);
      if (o.gate) x *= unary(o.function, take(o.z, b, e, base));
      put_one(to, plane, e, x);
    }
  }
};
static __device__ __noinline__ void make_one_by_one(int which, int sequence) {
  Making k(which, sequence);
  k.await_numbers();
  OneByOne{k.p, k.o, k.b, k.base, k.to, k.plane, k.stride}.make();
}

// All operands of a phase, one behind the other, M sequences each, when their numbers are there. Ends with a
// barrier.
GYRE_DEVICE void make_operands(int batch) {
#pragma unroll 1
  for (int i = 0; i < word_kept(&phase_now().operands); i++) {
    if (word_kept(&phase_now().operand[i].kind) == GYRE_TOKEN_SHIFT) continue;
#pragma unroll 1
    for (int b = 0; b < (M == 1 ? 1 : batch); b++) {
      const gyre_token_operand &o = phase_now().operand[i];
      bool is_long = word_kept(&o.size) > 512 * PAIRS;
      switch (word_kept(&o.path)) {
        case NORM_OF_ALL:
          if (is_long || o.gate) norm_all<MOST_PAIRS, true>(i, b);
          else norm_all<PAIRS, false>(i, b);
          break;
        case SCALED_LATER:
          if (is_long || o.gate) scaled_later<MOST_PAIRS, true>(b);
          else scaled_later<PAIRS, false>(b);
          break;
        case NORM_AND_SHIFT: norm_and_shift(b); break;
        case NORM_OF_GROUPS:
          if (o.centers || o.bias || o.gate == 2 || present(o.v)) norm_groups_of_warps<PAIRS, false>(i, b);
          else norm_groups_of_warps<PAIRS + 2, true>(i, b);
          break;
        case COPIED:
          if (o.gate) copy_gated(i, b);
          else if (is_long) copy_pairs<3 * PAIRS>(i, b);
          else copy_pairs<PAIRS>(i, b);
          break;
        case JOINED: join_attention(i, b); break;
        default: make_one_by_one(i, b);
      }
      if (M > 1) block_barrier();  // the sums' place is free
    }
  }
  block_barrier();
}

// What the block finds out about a phase before it begins; by a warp.
GYRE_DEVICE void plan(gyre_token_phase &p, int lane) {
  if (p.kind != GYRE_TOKEN_PRODUCT_PHASE) return;
  if (lane < p.operands) {
    int offset = 0;
    for (int i = 0; i < lane; i++) offset += M * extent_of(p.operand[i].size);
    p.operand[lane].offset = offset;
    p.operand[lane].path = path_of(p, lane);
  }
  __syncwarp();
  if (lane < p.products) {
    int first, last, before = 0;
    share(p.product[p.products - 1].first + p.product[p.products - 1].rows, first, last);
    gyre_token_product &mine = p.product[lane];
    for (int i = 0; i <= lane; i++) {
      gyre_token_product &q = p.product[i];
      int from = max(first - q.first, 0), own = max(min(last - q.first, q.rows) - from, 0);
      if (i < lane) before += q.paired ? 2 * own : own;
      else q.from = from, q.own = own, q.before = before, q.own_rows = q.paired ? 2 * own : own;
    }
    mine.scaled = mine.operand == 0 && p.operand[0].path == SCALED_LATER;
    mine.offset = 0;
    for (int i = 0; i < mine.operand; i++) mine.offset += M * extent_of(p.operand[i].size);
  }
  int outputs = __reduce_add_sync(~0u, lane < p.products ? p.product[lane].own : 0);
  if (lane == 0) p.product[0].outputs = outputs;
}

// Work beside the phase's own, over the whole grid; by a warp a block.
GYRE_DEVICE void make_moves(const gyre_token_phase &p, int batch, unsigned base, int lane) {
  for (int n = 0; n < p.moves; n++) {
    const gyre_token_move &m = p.move[n];
    for (int i = blockIdx.x * 32 + lane; i < batch * m.count; i += gridDim.x * 32) {
      int b = i / m.count, c = i - b * m.count;
      float *to = m.to + (long)b * m.stride + c;
      float x[GYRE_TOKEN_TAPS], last = take(m.from, b, c, base);
#pragma unroll
      for (int j = 1; j < GYRE_TOKEN_TAPS; j++)
        if (j < m.taps) x[j] = fresh(to + (long)j * m.count);
#pragma unroll
      for (int j = 1; j < GYRE_TOKEN_TAPS; j++)
        if (j < m.taps) to[(long)(j - 1) * m.count] = x[j];
      if (m.taps) to += (long)(m.taps - 1) * m.count;
      *to = last;
    }
  }
}
