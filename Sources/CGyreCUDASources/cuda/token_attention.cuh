// One token of softmax attention over cached keys and values. A block takes a part of the keys of one query head,
// eight lanes a key; keys and values are asked for ahead of the token's numbers. The block that has the newest
// key makes it and stores it. Then the blocks of a head join its parts, each for some channels.
#pragma once
#include "token_operand.cuh"

#define LANES 8
#define TEAMS (GYRE_TOKEN_THREADS / LANES)
#define JOINING 16  // lanes that join a channel, one a part

struct AttentionWork {
  float q[GYRE_TOKEN_KEYS], k[GYRE_TOKEN_KEYS], v[GYRE_TOKEN_KEYS];
  float y[WARPS][GYRE_TOKEN_KEYS];
  float largest[WARPS], sum[WARPS];
};

// A part of the keys of a head of a sequence. Old keys: all but the newest, from `from` to before `to`.
struct Part {
  int b, h, split, key_head, from, to;
  int pitch, back;  // bytes from place to place; in a ring, which goes backwards, the place of old key 0
  long start;       // bytes before the head's place 0
  GYRE_DEVICE Part(const gyre_token_attention &a)
      : b(a.sequence), h(a.head), split(a.split), key_head(a.key_head), from(a.from), to(a.to), back(a.back) {
    locate(a);
  }
  GYRE_DEVICE void locate(const gyre_token_attention &a) {
    pitch = a.key_heads * a.size * ELEMENT;
    start = (long)b * a.capacity * pitch + key_head * a.size * ELEMENT;
  }
  GYRE_DEVICE void find(const gyre_token_attention &a, int unit) {
    split = unit % a.splits, h = unit / a.splits % a.heads, b = unit / a.splits / a.heads;
    key_head = h / (a.heads / a.key_heads);
    int old = a.window > 0 ? min(a.position, a.window - 1) : a.position;
    from = (unsigned)old * split / a.splits, to = (unsigned)old * (split + 1) / a.splits;
    back = a.window > 0 ? (unsigned)(a.position + a.capacity - 1) % a.capacity : 0;
    locate(a);
  }
  GYRE_DEVICE bool has_newest(const gyre_token_attention &a) const { return split == a.splits - 1; }
  // Bytes before old key n.
  GYRE_DEVICE long before(const gyre_token_attention &a, int n) const {
    if (a.window > 0) n = back - n + (n > back ? a.capacity : 0);
    return start + (long)n * pitch;
  }
};
GYRE_DEVICE int parts_of(const gyre_token_attention &a, int batch) { return batch * a.heads * a.splits; }

// The block's first part, a phase ahead; brings its keys and values into the second-level cache. By a warp.
static __device__ __noinline__ void plan_part(gyre_token_attention &a, int batch, int position) {
  int lane = threadIdx.x & 31;
  if (lane == 0) a.position = position;
  __syncwarp();
  Part part(a);
  part.find(a, blockIdx.x);
  bool exists = (int)blockIdx.x < parts_of(a, batch);
  __syncwarp();
  if (lane == 0) {
    a.sequence = part.b, a.head = part.h, a.split = part.split, a.key_head = part.key_head;
    a.from = part.from, a.to = part.to, a.back = part.back, a.exists = exists;
  }
  if (!exists) return;
#pragma unroll 1
  for (int n = part.from + lane; n < part.to; n += 32) {
    long at = part.before(a, n);
#pragma unroll 1
    for (int line = 0; line < a.size * ELEMENT; line += 128) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(a.keys + at + line));
      asm volatile("prefetch.global.L2 [%0];" ::"l"(a.values + at + line));
    }
  }
}

// Cosines and sines of the position, kept from layer to layer.
static __device__ __noinline__ void find_turn() {
  const gyre_token_attention &a = phase_now().attention;
  gyre_token_shared &s = TOKEN_SHARED;
  block_barrier();
  int i = threadIdx.x;
  if (i < a.rotated / 2) {
    double sine, cosine;
    sincos((double)a.position * exp(-2. * i / a.rotated * a.log_base), &sine, &cosine);
    s.turn[0][i] = (float)cosine, s.turn[1][i] = (float)sine;
  }
  if (i == 0) s.rotated = a.rotated, s.log_base = a.log_base;
  block_barrier();
}

// One head of q, k or v of at most 64 N channels, normalised and turned to its position; by a warp.
template <int N> GYRE_DEVICE void place_head(
    const gyre_token_attention &a, int b, int offset, const float *norm, int rotated, float *to) {
  const gyre_token_shared &s = TOKEN_SHARED;
  int lane = this_thread() & 31, half = rotated / 2;
  unsigned stamp = TOKEN_WORD(base) + a.x.phase;
  int first[N], second[N];
  Stamped x[N], y[N];
#pragma unroll
  for (int j = 0; j < N; j++) {
    int i = lane + 32 * j;
    bool turns = i < half;
    first[j] = turns && !a.interleaved ? i : 2 * i;
    second[j] = turns && !a.interleaved ? i + half : 2 * i + 1;
    x[j] = y[j] = Stamped{0.f, stamp};
    if (i >= a.size / 2) continue;
    x[j] = read_stamped(place(a.x, b, offset + first[j]));
    y[j] = read_stamped(place(a.x, b, offset + second[j]));
  }
  float square = 0.f;
#pragma unroll
  for (int j = 0; j < N; j++) {
    for (int waits = 0; x[j].stamp != stamp; wait_again(waits))
      x[j] = read_stamped(place(a.x, b, offset + first[j]));
    for (int waits = 0; y[j].stamp != stamp; wait_again(waits))
      y[j] = read_stamped(place(a.x, b, offset + second[j]));
    square += x[j].x * x[j].x + y[j].x * y[j].x;
  }
  float scale = norm ? rsqrtf(warp_sum(square) / a.size + a.epsilon) : 1.f;
#pragma unroll
  for (int j = 0; j < N; j++) {
    int i = lane + 32 * j;
    if (i >= a.size / 2) continue;
    float one = x[j].x, two = y[j].x, cosine = 1.f, sine = 0.f;
    if (norm) one *= scale * norm[first[j]], two *= scale * norm[second[j]];
    if (i < half) cosine = s.turn[0][i], sine = s.turn[1][i];
    to[first[j]] = one * cosine - two * sine;
    to[second[j]] = one * sine + two * cosine;
  }
}

// Eight cached channels as they lie in memory.
struct Eight {
  uint4 w[WEIGHTS_ARE_FLOAT ? 2 : 1];
  GYRE_DEVICE void clear() {
#pragma unroll
    for (uint4 &x : w) x = make_uint4(0, 0, 0, 0);
  }
  GYRE_DEVICE void ask(const char *p) {
#pragma unroll
    for (uint4 &x : w) {
      asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                   : "l"(p));
      p += 16;
    }
  }
  GYRE_DEVICE void get(float (&x)[8]) const {
#if WEIGHTS_ARE_FLOAT
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const uint4 &y = w[i >> 2];
      x[i] = __uint_as_float((i & 3) == 0 ? y.x : (i & 3) == 1 ? y.y : (i & 3) == 2 ? y.z : y.w);
    }
#else
    unsigned pair[4] = {w[0].x, w[0].y, w[0].z, w[0].w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      x[2 * i] = __uint_as_float(pair[i] << 16);
      x[2 * i + 1] = __uint_as_float(pair[i] & 0xffff0000u);
    }
#endif
  }
};
GYRE_DEVICE void store_cached(char *p, int i, float x) {
  if (WEIGHTS_ARE_FLOAT) ((float *)p)[i] = x;
  else ((unsigned short *)p)[i] = float_to_bf16(x);
}

// e^(x - top), zero where nothing was added up.
GYRE_DEVICE float weight_of(float x, float top) { return x == -INFINITY ? 0.f : __expf(x - top); }

// What a lane has of a part: RUNS times eight channels of its team's keys.
template <int RUNS> struct Attended {
  // Keys of a team that are asked for together.
  static constexpr int ROUNDS = RUNS == 1 ? 6 / (ELEMENT / 2) : RUNS == 2 ? 3 : 1;
  static constexpr int N = RUNS * 8;
  Eight k[ROUNDS][RUNS], v[ROUNDS][RUNS];
  float q[N], y[N], largest, sum;

  // The team's keys from `first` on.
  GYRE_DEVICE void ask(const gyre_token_attention &a, const Part &part, int first) {
    int thread = this_thread(), lane = thread & (LANES - 1);
#pragma unroll
    for (int r = 0; r < ROUNDS; r++) {
      int n = first + r * TEAMS + thread / LANES;
      long row = part.before(a, n);
#pragma unroll
      for (int p = 0; p < RUNS; p++) {
        int e = (p * LANES + lane) * 8;
        k[r][p].clear(), v[r][p].clear();
        if (n >= part.to || e >= a.size) continue;
        k[r][p].ask(a.keys + row + e * ELEMENT);
        v[r][p].ask(a.values + row + e * ELEMENT);
      }
    }
  }
  static GYRE_DEVICE void load(const float *from, int size, float (&x)[N]) {
    int lane = this_thread() & (LANES - 1);
#pragma unroll
    for (int p = 0; p < RUNS; p++) {
      int e = (p * LANES + lane) * 8;
#pragma unroll
      for (int i = 0; i < 8; i += 4) {
        float4 z = e < size ? *(const float4 *)(from + e + i) : make_float4(0.f, 0.f, 0.f, 0.f);
        float *to = x + p * 8 + i;
        to[0] = z.x, to[1] = z.y, to[2] = z.z, to[3] = z.w;
      }
    }
  }
  static GYRE_DEVICE float over_lanes(float x) {
#pragma unroll
    for (int o = LANES / 2; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
    return x;
  }
  // Behind the barrier of the token's numbers.
  GYRE_DEVICE void start(const gyre_token_attention &a, const Part &part, const AttentionWork &w) {
    load(w.q, a.size, q);
#pragma unroll
    for (int i = 0; i < N; i++) q[i] *= a.scale, y[i] = 0.f;
    largest = -INFINITY, sum = 0.f;
    int thread = this_thread();
    if (!part.has_newest(a) || thread >= 32) return;
    // The newest key is the first team's.
    float newest[N], score = 0.f;
    load(w.k, a.size, newest);
#pragma unroll
    for (int i = 0; i < N; i++) score += q[i] * newest[i];
    score = over_lanes(score);
    if (thread >= LANES) return;
    largest = score, sum = 1.f;
    load(w.v, a.size, y);
  }
  // The keys that were asked for.
  GYRE_DEVICE void add(const Part &part, int first) {
    int thread = this_thread();
    first += thread / LANES;
    // Without the team's place among the warp's: warps go on together.
    int warp_first = first - (thread >> 3 & 3);
    float score[ROUNDS], top = largest;
#pragma unroll
    for (int r = 0; r < ROUNDS; r++) {
      score[r] = -INFINITY;
      if (warp_first + r * TEAMS >= part.to) continue;
      float dot = 0.f;
#pragma unroll
      for (int p = 0; p < RUNS; p++) {
        float x[8];
        k[r][p].get(x);
#pragma unroll
        for (int i = 0; i < 8; i++) dot += q[p * 8 + i] * x[i];
      }
      dot = over_lanes(dot);
      if (first + r * TEAMS < part.to) score[r] = dot;
      top = fmaxf(top, score[r]);
    }
    float keep = weight_of(largest, top);
    sum *= keep, largest = top;
#pragma unroll
    for (int i = 0; i < N; i++) y[i] *= keep;
#pragma unroll
    for (int r = 0; r < ROUNDS; r++) {
      if (warp_first + r * TEAMS >= part.to) continue;
      float weight = weight_of(score[r], top);
      sum += weight;
#pragma unroll
      for (int p = 0; p < RUNS; p++) {
        float x[8];
        v[r][p].get(x);
#pragma unroll
        for (int i = 0; i < 8; i++) y[p * 8 + i] += weight * x[i];
      }
    }
  }
  // Each of two lanes keeps half of COUNT numbers, and adds what the other has of them.
  template <int COUNT> GYRE_DEVICE void halve(bool upper, int bit) {
#pragma unroll
    for (int i = 0; i < COUNT / 2; i++) {
      float sent = __shfl_xor_sync(~0u, upper ? y[i] : y[i + COUNT / 2], bit);
      y[i] = (upper ? y[i + COUNT / 2] : y[i]) + sent;
    }
  }
  // The warp's teams together, for the other warps.
  GYRE_DEVICE void leave(AttentionWork &w) {
    float top = fmaxf(largest, __shfl_xor_sync(~0u, largest, LANES));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2 * LANES));
    float keep = weight_of(largest, top);
    sum *= keep;
#pragma unroll
    for (int i = 0; i < N; i++) y[i] *= keep;
    sum += __shfl_xor_sync(~0u, sum, LANES);
    sum += __shfl_xor_sync(~0u, sum, 2 * LANES);
    int thread = this_thread(), warp = thread >> 5, lane = thread & (LANES - 1);
    bool upper = thread & LANES, last = thread & 2 * LANES;
    halve<N>(upper, LANES);
    halve<N / 2>(last, 2 * LANES);
    if ((thread & 31) == 0) w.largest[warp] = top, w.sum[warp] = sum;
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
      int at = i + (upper ? N / 2 : 0) + (last ? N / 4 : 0);
      w.y[warp][((at >> 3) * LANES + lane) * 8 + (at & 7)] = y[i];
    }
  }
};

// The block's channels of a head from all its parts.
GYRE_DEVICE void join_parts(const gyre_token_attention &a, const Part &part, unsigned base, unsigned *count) {
  int thread = this_thread(), n = thread & (JOINING - 1);
  int from = a.size * part.split / a.splits, to = a.size * (part.split + 1) / a.splits;
  unsigned stamp = base + a.y.phase;
  for (int first = from; first < to; first += GYRE_TOKEN_THREADS / JOINING) {
    int e = first + thread / JOINING;
    bool exists = n < a.splits && e < to;
    float largest = -INFINITY, sum = 0.f, y = 0.f;
    if (exists) {
      const char *from_sums = place(a.sums, part.b, (n * a.heads + part.h) * 2);
      Asked asked(a.y, part.b, (long)(n * a.heads + part.h) * a.size + e, base);
      StampedTwo two = read_two(from_sums);
      y = asked.get();
      for (int waits = 0; !two.has(stamp); wait_again(waits)) two = read_two(from_sums);
      largest = two.x, sum = two.y;
    }
    __syncwarp();
    float top = largest;
#pragma unroll
    for (int o = JOINING / 2; o; o >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
    float weight = weight_of(largest, top);
    y *= weight, sum *= weight;
#pragma unroll
    for (int o = JOINING / 2; o; o >>= 1) {
      y += __shfl_xor_sync(~0u, y, o);
      sum += __shfl_xor_sync(~0u, sum, o);
    }
    if (n == 0 && e < to) give(a.joined, part.b, part.h * a.size + e, base, __fdividef(y, sum));
  }
  if (thread == 0) count_given(count, to - from);
}

// Behind a barrier all warps are past the phase before.
GYRE_DEVICE void begin_attention(bool is_first) {
  block_barrier();
  if (is_first) begin_phase();
}

template <int RUNS>
GYRE_DEVICE void attend_part(const gyre_token_attention &a, const Part &part, bool is_first) {
  AttentionWork &w = *(AttentionWork *)operands_of_block();
  int thread = this_thread(), warp = thread >> 5;
  bool has_newest = part.has_newest(a);
  Attended<RUNS> own;
  own.ask(a, part, part.from);
  // The first warps come last: they end the outputs of the phase before.
  int role = WARPS - 1 - warp, heads_key = part.key_head * a.size;  // of q, k or v
  if (role == 0 || (has_newest && role < 3))
    place_head<RUNS>(a, part.b, role == 0 ? a.q + part.h * a.size : (role == 1 ? a.k : a.v) + heads_key,
                     role == 0 ? a.query_norm : role == 1 ? a.key_norm : nullptr, role < 2 ? a.rotated : 0,
                     role == 0 ? w.q : role == 1 ? w.k : w.v);
  begin_attention(is_first);
  own.start(a, part, w);
#pragma unroll 1
  for (int first = part.from; first < part.to;) {
    own.add(part, first);
    first += own.ROUNDS * TEAMS;
    if (first < part.to) own.ask(a, part, first);
  }
  own.leave(w);
  block_barrier();
  unsigned base = TOKEN_WORD(base), *count = shared_anew().counts + now();
  float top = w.largest[0];
#pragma unroll
  for (int i = 1; i < WARPS; i++) top = fmaxf(top, w.largest[i]);
  if (thread < a.size) {
    float y = 0.f, sum = 0.f;
#pragma unroll
    for (int i = 0; i < WARPS; i++) {
      float weight = weight_of(w.largest[i], top);
      y += weight * w.y[i][thread], sum += weight * w.sum[i];
    }
    if (a.splits == 1) {
      give(a.joined, part.b, part.h * a.size + thread, base, __fdividef(y, sum));
    } else {
      give(a.y, part.b, (part.split * a.heads + part.h) * a.size + thread, base, y);
      if (thread < 2)
        give(a.sums, part.b, (part.split * a.heads + part.h) * 2 + thread, base, thread ? sum : top);
    }
  }
  if (a.splits > 1) join_parts(a, part, base, count);
  else if (thread == 0) count_given(count, a.size);
  if (has_newest && part.h % (a.heads / a.key_heads) == 0 && thread < a.size) {
    int slot = a.window > 0 ? a.position % a.capacity : a.position;
    long at = part.start + (long)slot * part.pitch;
    store_cached(a.keys + at, thread, w.k[thread]);
    store_cached(a.values + at, thread, w.v[thread]);
  }
}

static __device__ __noinline__ void attention_step(int batch) {
  const gyre_token_attention &a = phase_now().attention;
  if (TOKEN_SHARED.rotated != a.rotated || TOKEN_SHARED.log_base != a.log_base) find_turn();
  if (!a.exists) begin_attention(true);
  Part part(a);
  for (int unit = blockIdx.x; a.exists;) {
    bool is_first = unit == blockIdx.x;
    if (a.size <= 64) attend_part<1>(a, part, is_first);
    else if (a.size <= 128) attend_part<2>(a, part, is_first);
    else attend_part<4>(a, part, is_first);
    unit += gridDim.x;
    if (unit >= parts_of(a, batch)) break;
    block_barrier();
    part.find(a, unit);
  }
}
