// Draws the next token of each sequence from its logits: repetition penalty, temperature, top-k, top-p,
// min-p and the counter-based draw of GyreInference.Sampler, in its order. One block a sequence; a
// thread has a run of tokens, so that the order of threads is the order of tokens. Sets of the most
// probable tokens are found by bisection over the scores' bit patterns.
#include "gyre_cuda_token_args.h"
#include "prelude.cuh"

#define THREADS GYRE_TOKEN_SAMPLE_THREADS
#define NONE 0x7fffffff

// Larger scores have larger keys; NaN and -inf have 0.
GYRE_DEVICE unsigned key_of(float x) {
  if (!(x > -INFINITY)) return 0;
  unsigned u = __float_as_uint(x == 0.f ? 0.f : x);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}

// Sums over the block in a fixed order, to all threads.
GYRE_DEVICE double block_sum(double x, double *shared) {
#pragma unroll
  for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
  __syncthreads();
  x = 0.;
  for (int i = 0; i < THREADS / 32; i++) x += shared[i];
  __syncthreads();
  return x;
}
// The sum over the threads before this one.
GYRE_DEVICE double sum_before(double x, double *shared) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  double all = x;
#pragma unroll
  for (int o = 1; o < 32; o <<= 1) {
    double other = __shfl_up_sync(~0u, all, o);
    if (lane >= o) all += other;
  }
  if (lane == 31) shared[warp] = all;
  __syncthreads();
  double before = all - x;
  for (int i = 0; i < warp; i++) before += shared[i];
  __syncthreads();
  return before;
}

// A set of the most probable tokens: all with keys above `key` and, of those with it, the tokens up to
// `last`.
struct Kept {
  unsigned key;
  int last;
  GYRE_DEVICE bool has(unsigned k, int token) const {
    return k > 0 && (k > key || (k == key && token <= last));
  }
};

struct Row {
  const float *logits;
  int first, last;  // the thread's tokens
  float top;
  float inverse;  // of the temperature
  double *shared;
  GYRE_DEVICE double weight(float x) const { return (double)expf((x - top) * inverse); }

  // What tokens weigh: 1 each, or their probability without the divisor.
  template <bool COUNTS> __device__ __noinline__ double above(const Kept &in, unsigned key, bool equal) const {
    double sum = 0.;
    for (int i = first; i < last; i++) {
      unsigned k = key_of(logits[i]);
      if (in.has(k, i) && (equal ? k >= key : k > key)) sum += COUNTS ? 1. : weight(logits[i]);
    }
    return block_sum(sum, shared);
  }
  // The fewest most probable tokens of `in` that together weigh `mass`, or more than it.
  template <bool COUNTS> __device__ __noinline__ Kept fewest(const Kept &in, double mass, bool more) const {
    unsigned low = 1, high = 0xffffffffu;  // the answer is the largest key that holds enough
    while (low < high) {
      unsigned middle = low + (high - low) / 2 + 1;
      double m = above<COUNTS>(in, middle, true);
      if (more ? m > mass : m >= mass) low = middle;
      else high = middle - 1;
    }
    // Ties go by token.
    double over = above<COUNTS>(in, low, false), one = 0., mine = 0.;
    for (int i = first; i < last; i++) {
      unsigned k = key_of(logits[i]);
      if (k == low && in.has(k, i)) {
        one = COUNTS ? 1. : weight(logits[i]);
        mine += one;
      }
    }
    double sum = over + sum_before(mine, shared);
    __shared__ int found;
    if (threadIdx.x == 0) found = NONE;
    __syncthreads();
    for (int i = first; i < last; i++) {
      unsigned k = key_of(logits[i]);
      if (k != low || !in.has(k, i)) continue;
      sum += one;
      if (more ? sum > mass : sum >= mass) {
        atomicMin(&found, i);
        break;
      }
    }
    __syncthreads();
    Kept kept = {low, found};
    __syncthreads();
    return kept;
  }
};

// Word `index` of Philox 4x32-10, as a uniform number.
GYRE_DEVICE float uniform(unsigned long seed, unsigned long stream, unsigned long index) {
  unsigned long counter = index >> 2;
  unsigned c[4] = {(unsigned)counter, (unsigned)(counter >> 32), (unsigned)stream,
                   (unsigned)(stream >> 32)};
  unsigned k0 = (unsigned)seed, k1 = (unsigned)(seed >> 32);
  for (int i = 0; i < 10; i++) {
    unsigned long p0 = 0xD2511F53ul * c[0], p1 = 0xCD9E8D57ul * c[2];
    unsigned next[4] = {(unsigned)(p1 >> 32) ^ c[1] ^ k0, (unsigned)p1,
                        (unsigned)(p0 >> 32) ^ c[3] ^ k1, (unsigned)p0};
    for (int j = 0; j < 4; j++) c[j] = next[j];
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return ((float)(c[index & 3] >> 9) + 0.5f) * 0x1p-23f;
}

extern "C" __global__ void __launch_bounds__(GYRE_TOKEN_SAMPLE_THREADS, 1)
    token_sample(gyre_token_sample_args a) {
  __shared__ double shared[THREADS / 32];
  __shared__ unsigned best_key;
  __shared__ int best, chosen;
  int b = blockIdx.x, tid = threadIdx.x;
  int position = a.position[b];
  if (a.keeps_token) {
    __syncthreads();
    if (tid == 0) a.position[b] = position + 1;
    return;
  }
  float *logits = a.logits + b * a.logit_stride;
  // The repetition penalty, once a token.
  if (a.window > 0 && a.penalty != 1.f) {
    const int *recent = a.recent + (long)b * a.window;
    int count = min(a.recent_count[b], a.window);
    for (int i = tid; i < count; i += THREADS) {
      int token = recent[i];
      bool is_first = token >= 0 && token < a.vocabulary;
      for (int j = 0; j < i && is_first; j++) is_first = recent[j] != token;
      if (!is_first) continue;
      float x = logits[token];
      logits[token] = x > 0.f ? x / a.penalty : x * a.penalty;
    }
    __syncthreads();
  }
  if (tid == 0) best_key = 0, best = NONE, chosen = NONE;
  __syncthreads();
  // The most probable token; reads side by side.
  unsigned key = 0;
  int token = NONE;
  for (int i = tid; i < a.vocabulary; i += THREADS) {
    unsigned k = key_of(logits[i]);
    if (k > key) key = k, token = i;
  }
  atomicMax(&best_key, key);
  __syncthreads();
  if (key == best_key && key > 0) atomicMin(&best, token);
  __syncthreads();
  if (best == NONE) {
    if (tid == 0) chosen = -1;
  } else if (a.temperature == 0. || logits[best] == INFINITY) {
    if (tid == 0) chosen = best;
  } else {
    Row row;
    int each = (a.vocabulary + THREADS - 1) / THREADS;
    row.logits = logits;
    row.first = min(tid * each, a.vocabulary);
    row.last = min(row.first + each, a.vocabulary);
    row.top = logits[best];
    row.inverse = (float)(1. / a.temperature);
    row.shared = shared;
    Kept kept = {0, NONE};
    bool sorts = (a.top_k > 0 && a.top_k < a.vocabulary) || a.top_p < 1.;
    if (a.top_k > 0 && a.top_k < a.vocabulary) kept = row.fewest<true>(kept, a.top_k, false);
    if (a.top_p < 1.) {
      double all = row.above<false>(kept, 0, true);
      kept = row.fewest<false>(kept, a.top_p * all, false);
    }
    if (a.min_p > 0.) {
      // Weights of at least min_p: keys from that of the least such score on.
      unsigned low = 1, high = best_key;
      while (low < high) {
        unsigned middle = low + (high - low) / 2;
        float x = __uint_as_float(middle & 0x80000000u ? middle & 0x7fffffffu : ~middle);
        if (row.weight(x) >= a.min_p) high = middle;
        else low = middle + 1;
      }
      if (low > kept.key) kept.key = low, kept.last = NONE;
    }
    double all = row.above<false>(kept, 0, true);
    double point = (double)uniform(a.seed, a.stream, (unsigned long)a.draws[b]) * all;
    if (sorts) {
      Kept upto = row.fewest<false>(kept, point, true);
      // The last of the tokens up to the point.
      if (tid == 0) chosen = upto.last;
    } else {
      double mine = 0.;
      for (int i = row.first; i < row.last; i++)
        if (kept.has(key_of(logits[i]), i)) mine += row.weight(logits[i]);
      double sum = sum_before(mine, shared);
      for (int i = row.first; i < row.last; i++) {
        if (!kept.has(key_of(logits[i]), i)) continue;
        sum += row.weight(logits[i]);
        if (point < sum) {
          atomicMin(&chosen, i);
          break;
        }
      }
    }
    __syncthreads();
    if (tid == 0 && chosen == NONE) chosen = best;
  }
  __syncthreads();
  if (tid == 0) {
    a.output[(long)(position % a.slots) * a.batch + b] = chosen;
    a.tokens[b] = chosen < 0 ? 0 : chosen;
    a.draws[b]++;
    if (a.window > 0) {
      a.recent[(long)b * a.window + a.recent_count[b] % a.window] = chosen;
      a.recent_count[b]++;
    }
    a.position[b] = position + 1;
  }
}
