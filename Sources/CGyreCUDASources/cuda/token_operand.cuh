// Operands of products in shared memory: every block makes them anew from vectors of a few thousand
// numbers, which it waits for number by number.
#pragma once
#include "token_norm.cuh"

// How an operand is made; `plan` chooses. Code that a phase walks through once is paid by its length.
enum {
  ONE_BY_ONE,
  NORM_OF_ALL,
  SCALED_LATER,
  NORM_AND_SHIFT,
  ALL_COPIED,
  NORM_OF_GROUPS,
  COPIED,
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
// Short vectors as they are, all of a phase at once. What the block's products do not take is waited for as well:
// who wrote it must be past what this phase's moves overwrite.
static __device__ __noinline__ void copy_all(int sequence) {
  const int N = GYRE_TOKEN_OPERANDS;
  Making k(0, sequence);
  const gyre_token_phase &p = k.p;
  int e = this_thread() * 2, operands = p.operands;
  k.await_numbers();
  StampedTwo s[N];
#pragma unroll
  for (int i = 0; i < N; i++) {
    const gyre_token_operand &o = p.operand[i];
    if (i < operands && e < o.size) s[i] = read_two(place(o.x, k.b, e));
  }
#pragma unroll
  for (int i = 0; i < N; i++) {
    const gyre_token_operand &o = p.operand[i];
    if (i >= operands || e >= o.size) continue;
    unsigned stamp = k.base + o.x.phase;
    for (int waits = 0; !s[i].has(stamp); wait_again(waits)) s[i] = read_two(place(o.x, k.b, e));
    if (!(p.needed >> i & 1)) continue;
    int plane = plane_of(o.size);
    put_two(operands_of_block() + o.offset + k.b * PARTS * plane, plane, e, s[i].x, s[i].y);
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
  GYRE_DEVICE void make() const {
    if (o.kind == GYRE_TOKEN_NORM) {
      for (int first = (threadIdx.x >> 5) * o.group; first < o.size; first += WARPS * o.group)
        norm_group(first);
      return;
    }
    for (int e = threadIdx.x; e < o.size; e += GYRE_TOKEN_THREADS) {
      float x = take(o.x, b, e, base);
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
          if (o.gate) scaled_later<MOST_PAIRS, true>(b);
          else if (is_long) scaled_later<MOST_PAIRS, false>(b);
          else scaled_later<PAIRS, false>(b);
          break;
        case NORM_AND_SHIFT: norm_and_shift(b); break;
        case NORM_OF_GROUPS:
          if (o.centers || o.bias || o.gate == 2 || present(o.v)) norm_groups_of_warps<PAIRS, false>(i, b);
          else norm_groups_of_warps<PAIRS + 2, true>(i, b);
          break;
        case ALL_COPIED:
          if (i == 0) copy_all(b);
          break;
        case COPIED:
          if (o.gate) copy_gated(i, b);
          else if (!is_long) copy_pairs<PAIRS>(i, b);
          else if (word_kept(&o.size) <= 3 * 512 * PAIRS) copy_pairs<3 * PAIRS>(i, b);
          else copy_pairs<4 * PAIRS>(i, b);
          break;
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
  bool is_product = lane < p.products, is_operand = lane < p.operands;
  int outputs = __reduce_add_sync(~0u, is_product ? p.product[lane].own : 0);
  int needed = __reduce_or_sync(~0u, is_product && p.product[lane].own ? 1 << p.product[lane].operand : 0);
  bool is_short = is_operand && p.operand[lane].path == COPIED && !p.operand[lane].gate && p.operand[lane].size <= 512;
  bool all_copied = p.operands > 1 && __all_sync(~0u, is_short || !is_operand);
  __syncwarp();  // paths were read
  if (is_operand && all_copied) p.operand[lane].path = ALL_COPIED;
  if (lane == 0) p.product[0].outputs = outputs, p.needed = needed;
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
