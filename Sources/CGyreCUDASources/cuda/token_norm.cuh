// Operands that are norms of a vector: of all its channels, with token shift, of groups.
#pragma once
#include "token_pairs.cuh"

// x / its norm over all.
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
  if (M == 1 && which > 0) block_barrier();  // an operand's sums before may still be read
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
GYRE_DEVICE int lowest(int bits) { return __ffs(bits) - 1; }
// With token shift: operand i is y + (last - y) * mix of operand i, for those that the block needs; seldom more than
// two, whose mixes are asked for ahead.
static __device__ __noinline__ void norm_and_shift(int sequence) {
  const int N = PAIRS, BOTH = 2;
  Making k(0, sequence);
  const gyre_token_operand &o = k.o;
  char *to = k.to;
  int size = o.size, own = first_pair(), left = k.p.needed;
  float2 x[N], step[N], weight[N], bias[N], mix[BOTH][N];
  int operand[BOTH];
  load_pairs(o.weight, own, size, 1.f, weight);
  load_pairs(o.bias, own, size, 0.f, bias);
  load_pairs(o.last + k.b * size, own, size, 0.f, step);
#pragma unroll
  for (int i = 0; i < BOTH; i++, left &= left - 1) {
    operand[i] = lowest(left);
    load_pairs(left ? k.p.operand[operand[i]].mix : nullptr, own, size, 0.f, mix[i]);
  }
  Source source(o.x, k.b, own, size, k.base);
  k.await_numbers();
  source.take(x);
  normalize(o, own, size, x);
#pragma unroll
  for (int j = 0; j < N; j++) {
    x[j] = plus(times(x[j], weight[j]), bias[j]);
    step[j] = plus(step[j], times(x[j], -1.f));
  }
#pragma unroll 1
  for (;;) {
#pragma unroll
    for (int i = 0; i < BOTH; i++) {
      if (operand[i] < 0) continue;
#pragma unroll
      for (int j = 0; j < N; j++) {
        float2 y = plus(x[j], times(step[j], mix[i][j]));
        int e = own + pair_after(j);
        if (e < size) put_two(to + operand[i] * k.stride, k.plane, e, y.x, y.y);
      }
    }
    if (!left) break;
#pragma unroll
    for (int i = 0; i < BOTH; i++, left &= left - 1) {
      operand[i] = lowest(left);
      load_pairs(left ? k.p.operand[operand[i]].mix : nullptr, own, size, 0.f, mix[i]);
    }
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
    StampedTwo numbers[N];
    source.ask(numbers);
    if (added) {
      // All is asked for before something is waited for.
      StampedTwo values[N];
      Stamped scores[N];
      Source of_values(o.v, b, own, size, base);
      of_values.ask(values);
      unsigned stamp = base + o.score.phase;
#pragma unroll
      for (int j = 0; j < N; j++) {
        int e = own + pair_after(j);
        scores[j] = Stamped{0.f, stamp};
        if (e < size) scores[j] = read_stamped(place(o.score, b, e >> shift));
      }
      of_values.get(values, v);
#pragma unroll
      for (int j = 0; j < N; j++) {
        const char *from = place(o.score, b, (own + pair_after(j)) >> shift);
        for (int waits = 0; scores[j].stamp != stamp; wait_again(waits)) scores[j] = read_stamped(from);
        v[j] = times(v[j], scores[j].x);
      }
    }
    source.get(numbers, x);
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
