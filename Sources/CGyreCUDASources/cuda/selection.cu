// Choices of routers and what they select, random choices, rotary positions at rates.
#include "gyre_cuda_engine_args.h"
#include "philox.cuh"

#define EACH(i, count)                                                                        \
  for (long i = (long)blockIdx.x * blockDim.x + threadIdx.x; i < (count); \
       i += (long)gridDim.x * blockDim.x)

// MARK: top mask

// One warp a row: the largest element left, `chosen` times; the first of equals.
GYRE_KERNEL top_mask(const __grid_constant__ gyre_top_mask_args a) {
  const int lane = threadIdx.x & 31;
  const long warps = (long)gridDim.x * (blockDim.x >> 5);
  float *y = (float *)a.y.data;
  for (long r = (long)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5); r < a.rows; r += warps) {
    for (long j = lane; j < a.columns; j += 32) y[r * a.columns + j] = 0.f;
    for (long n = 0; n < a.chosen; n++) {
      __syncwarp();
      long best = -1;
      float most = 0.f;
      for (long j = lane; j < a.columns; j += 32) {
        if (y[r * a.columns + j] != 0.f) continue;
        const float x = load(a.x, r * a.columns + j);
        if (best < 0 || x > most) best = j, most = x;
      }
      for (int o = 16; o; o >>= 1) {
        const long other = __shfl_xor_sync(~0u, best, o);
        const float x = __shfl_xor_sync(~0u, most, o);
        if (other >= 0 && (best < 0 || x > most || (x == most && other < best)))
          best = other, most = x;
      }
      if (best >= 0 && (best & 31) == lane) y[r * a.columns + best] = 1.f;
    }
  }
}

// MARK: selected history

// One thread a lane of a row; the history is in registers.
GYRE_KERNEL selected_history(const __grid_constant__ gyre_selected_history_args a) {
  const long n = (long)blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= a.batch * a.lanes) return;
  const long b = n / a.lanes, m = n % a.lanes;
  const int before = a.width - 1, zero = (int)(n * (a.width + a.tokens));
  int history[GYRE_SELECTED_WIDTH];
#pragma unroll
  for (int j = 0; j < GYRE_SELECTED_WIDTH; j++) history[j] = zero + 1 + j;
  for (long t = 0; t < a.tokens; t++) {
    const bool starts = a.reset && a.reset[b * a.tokens + t];
    const long i = (b * a.tokens + t) * a.lanes + m;
    const bool taken = load(a.mask, i) != 0.f;
#pragma unroll
    for (int j = 0; j < GYRE_SELECTED_WIDTH; j++) {
      if (starts) history[j] = zero;
      if (j < before) a.out[j][i] = taken ? history[j] : zero;
    }
    if (!taken) continue;
#pragma unroll
    for (int j = 0; j < GYRE_SELECTED_WIDTH; j++) {
      if (j + 1 < before) history[j] = history[j + 1 < GYRE_SELECTED_WIDTH ? j + 1 : j];
      if (j + 1 == before) history[j] = zero + a.width + (int)t;
    }
  }
#pragma unroll
  for (int j = 0; j < GYRE_SELECTED_WIDTH; j++)
    if (j < before) a.last[n * before + j] = history[j];
}

// The same for longer histories, which lie in `last`: places from `first` on.
GYRE_KERNEL selected_history_long(const __grid_constant__ gyre_selected_history_args a) {
  const long n = (long)blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= a.batch * a.lanes) return;
  const long b = n / a.lanes, m = n % a.lanes;
  const int before = a.width - 1, zero = (int)(n * (a.width + a.tokens));
  int *history = a.last + n * before;
  for (int j = 0; j < before; j++) history[j] = zero + 1 + j;
  for (long t = 0; t < a.tokens; t++) {
    const bool starts = a.reset && a.reset[b * a.tokens + t];
    const long i = (b * a.tokens + t) * a.lanes + m;
    const bool taken = load(a.mask, i) != 0.f;
    for (int j = 0; j < before && starts; j++) history[j] = zero;
#pragma unroll
    for (int j = 0; j < GYRE_SELECTED_WIDTH; j++)
      if (a.first + j < before) a.out[j][i] = taken ? history[a.first + j] : zero;
    if (!taken) continue;
    for (int j = 0; j + 1 < before; j++) history[j] = history[j + 1];
    history[before - 1] = zero + a.width + (int)t;
  }
}

// MARK: random choice

// Four numbers a thread.
GYRE_KERNEL random_choice(gyre_choice_args a) {
  unsigned long stream = a.stream;
  if (a.step) stream ^= (unsigned long)a.step[0] * 0x9E3779B97F4A7C15ul;
  EACH(n, (a.count + 3) / 4) {
    const uint4 v = philox(
        make_uint4((unsigned)n, (unsigned)(n >> 32), (unsigned)stream, (unsigned)(stream >> 32)),
        (unsigned)a.seed, (unsigned)(a.seed >> 32));
    const unsigned words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; j++)
      if (4 * n + j < a.count) store(a.y, 4 * n + j, words[j] >> 9 < a.below ? a.chosen : a.other);
  }
}

// MARK: rotary positions at rates

GYRE_KERNEL rotary_at_rates(const __grid_constant__ gyre_rotary_rates_args a) {
  const long still = a.first == 0 ? a.size - 2 * a.pairs : 0, across = max((long)a.count, still);
  EACH(n, a.rows * across) {
    const long r = n / across, i = n % across;
    if (i < a.count) {
      // The angle in double: positions times rates lose digits in float.
      const double turn = (double)(a.offset + r / a.heads % a.tokens) * a.rates[i];
      double s, c;
      sincos(turn, &s, &c);
      const float cosine = (float)(a.magnitude * c);
      const float sine = (float)(a.inverts ? -a.magnitude * s : a.magnitude * s);
      const long pair = a.first + i, first = r * a.size + (a.interleaved ? 2 * pair : pair);
      const long second = a.interleaved ? first + 1 : first + a.pairs;
      const float x = load(a.x, first), y = load(a.x, second);
      store(a.y, first, x * cosine - y * sine);
      store(a.y, second, x * sine + y * cosine);
    }
    if (i < still) {
      const long at = r * a.size + 2 * a.pairs + i;
      store(a.y, at, load(a.x, at));
    }
  }
}
