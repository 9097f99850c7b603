// One token of a whole model: one block a multiprocessor, all of them at once, walks the phases.
// Weights stream through shared memory without regard to phases (token_stream.cuh); what depends on
// the token goes through vectors that stay in the second-level cache.
// Variants: TOKEN_VARIANT=0..7
#include "token_attention.cuh"
#include "token_matrix.cuh"

// A warp's places in the stream lie here while no product runs: the phases' calls leave no registers.
struct Places {
  Stream now, later;
  int slot;
};
static_assert(sizeof(Places) <= 2 * GYRE_TOKEN_STREAM, "places in the stream");

struct Shared {
  gyre_token_phase phase;
  union {
    Places place;
    char bytes[2 * GYRE_TOKEN_STREAM];
  } places[WARPS];
  float sums[GYRE_TOKEN_THREADS];
  float partials[GYRE_TOKEN_PARTIALS];
};

// y of one output from its sums; `second` of the other half of a pair.
static __device__ __noinline__ void finish(
    const gyre_token_product &p, long b, int n, float x, float second) {
  x += load_or(p.bias, n, 0.f);
  float *y = p.y.data + b * p.y.stride + n;
  switch (p.rule) {
    case GYRE_TOKEN_ADD: *y = p.alpha * fresh(y) + p.beta * x; break;
    case GYRE_TOKEN_GATED:
      *y = unary(p.function, x) * (second + load_or(p.bias, p.rows + n, 0.f));
      break;
    case GYRE_TOKEN_MIN_GRU: {
      float *state = p.state.data + b * p.state.stride + n;
      float c = second + load_or(p.bias, p.rows + n, 0.f), z = sigmoid(x);
      float h = (1.f - z) * fresh(state) + z * (c >= 0.f ? c + 0.5f : sigmoid(c));
      *state = h;
      *y = h;
      break;
    }
    case GYRE_TOKEN_CAP: *y = p.alpha * tanhf(x / p.alpha); break;
    default: *y = unary(p.function, x);
  }
}

static __device__ __noinline__ void multiply(
    const gyre_token_phase &p, char *ring, const float *operands, Shared &s, int batch) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  Stream now = s.places[warp].place.now, later = s.places[warp].place.later;
  int slot = s.places[warp].place.slot;
  int first, last;
  Stream::share(p.product[p.products - 1].first + p.product[p.products - 1].rows, first, last);
  int entry = -1, base = 0;
  const float *x = operands;
  int extent = 0;
  while (now.index < p.last_entry && now.index < now.count) {
    if (entry != now.index) {
      // Sums of the products before this one lie before its own, operands likewise.
      entry = now.index;
      int which = p.products - (p.last_entry - entry);
      base = 0;
      for (int i = 0; i < which; i++) {
        const gyre_token_product &q = p.product[i];
        int from = first < q.first ? 0 : first - q.first, to = min(last - q.first, q.rows);
        if (to > from) base += (to - from) * (q.paired ? 2 : 1) * q.pieces;
      }
      x = operands;
      for (int i = 0; i < p.product[which].operand; i++) x += (long)M * padded(p.operand[i].size);
      extent = padded(now.columns);
    }
    copies_wait<DEPTH - 1>();
    const char *weights = ring + slot * GYRE_TOKEN_CHUNK + lane * 16;
    uint4 u = *(const uint4 *)weights, v = *(const uint4 *)(weights + 512);
    float sum[M];
#pragma unroll
    for (int m = 0; m < M; m++) {
      const float *at = x + m * extent + now.piece * PIECE;
      sum[m] = dot_half(v, at + PIECE / 2, lane, dot_half(u, at, lane, 0.f));
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
      float total = warp_sum(sum[m]);
      if (lane == 0) s.partials[(base + now.row * now.pieces + now.piece) * M + m] = total;
    }
    later.copy(ring + slot * GYRE_TOKEN_CHUNK, lane);
    if (later.index < later.count) later.advance();
    slot = slot + 1 == DEPTH ? 0 : slot + 1;
    now.advance();
  }
  __syncwarp();
  if (lane == 0) {
    s.places[warp].place.now = now;
    s.places[warp].place.later = later;
    s.places[warp].place.slot = slot;
  }
  __syncthreads();
  int start = 0;
  for (int i = 0; i < p.products; i++) {
    const gyre_token_product &q = p.product[i];
    int from = first < q.first ? 0 : first - q.first, own = min(last - q.first, q.rows) - from;
    if (own <= 0) continue;
    for (int j = threadIdx.x; j < own * batch; j += GYRE_TOKEN_THREADS) {
      int b = j / own, r = j - b * own;
      float x = 0.f, second = 0.f;
      for (int n = 0; n < q.pieces; n++) x += s.partials[(start + r * q.pieces + n) * M + b];
      if (q.paired)
        for (int n = 0; n < q.pieces; n++)
          second += s.partials[(start + (own + r) * q.pieces + n) * M + b];
      finish(q, b, from + r, x, second);
    }
    start += own * (q.paired ? 2 : 1) * q.pieces;
  }
}

static __device__ __noinline__ void embed(
    const gyre_token_embedding &e, const int *tokens, int batch, float *work, float *shared) {
  for (int b = blockIdx.x; b < batch; b += gridDim.x) {
    float sum = 0.f, square = 0.f;
    for (int i = threadIdx.x; i < e.size; i += GYRE_TOKEN_THREADS) {
      float x = load(e.table, (long)tokens[b] * e.size + i) * e.factor;
      work[i] = x;
      sum += x;
    }
    float mean = e.norm == 2 ? block_sum(sum, shared) / e.size : 0.f;
    for (int i = threadIdx.x; i < e.size; i += GYRE_TOKEN_THREADS) {
      float x = work[i] - mean;
      square += x * x;
    }
    float scale = 1.f / sqrtf(block_sum(square, shared) / e.size + e.epsilon);
    for (int i = threadIdx.x; i < e.size; i += GYRE_TOKEN_THREADS) {
      float x = work[i];
      if (e.norm)
        x = (x - mean) * scale * load_or(e.weight, i, 1.f) + load_or(e.bias, i, 0.f);
      e.y.data[b * e.y.stride + i] = x;
    }
  }
}

static __device__ __noinline__ void start_stream(
    const gyre_token_step_args &a, char *ring, Shared &s) {
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  Stream later;
  later.start(a.entries, a.entry_count, warp);
  if (lane == 0) s.places[warp].place.now = later;
  for (int i = 0; i < DEPTH; i++) {
    later.copy(ring + i * GYRE_TOKEN_CHUNK, lane);
    if (later.index < later.count) later.advance();
  }
  if (lane == 0) {
    s.places[warp].place.later = later;
    s.places[warp].place.slot = 0;
  }
}

GYRE_DEVICE void read_phase(gyre_token_phase *to, const gyre_token_phase *from) {
  for (int i = threadIdx.x; i < (int)(sizeof(gyre_token_phase) / 4); i += GYRE_TOKEN_THREADS)
    ((int *)to)[i] = ((const int *)from)[i];
}

extern "C" __global__ void __launch_bounds__(GYRE_TOKEN_THREADS, 1)
    token_step(gyre_token_step_args a) {
  extern __shared__ char memory[];
  char *ring = memory + (threadIdx.x >> 5) * DEPTH * GYRE_TOKEN_CHUNK;
  float *operands = (float *)(memory + WARPS * DEPTH * GYRE_TOKEN_CHUNK);
  Shared &s = *(Shared *)(operands + a.operand_floats);
  start_stream(a, ring, s);
  unsigned target = 0;
  long position = *a.position;
  read_phase(&s.phase, a.phases);
  __syncthreads();
  for (int n = 0; n < a.phase_count; n++) {
    const gyre_token_phase &p = s.phase;
    make_moves(p, a.batch);
    switch (p.kind) {
      case GYRE_TOKEN_PRODUCT_PHASE:
        if (p.waits) make_operands(p, a.batch, operands, s.sums);
        multiply(p, ring, operands, s, a.batch);
        break;
      case GYRE_TOKEN_MATRIX_PHASE:
        matrix_step(p.matrix, a.batch, *(MatrixWork *)operands);
        break;
      case GYRE_TOKEN_ATTENTION_PHASE:
        attention_step(p.attention, a.batch, position, *(AttentionWork *)operands);
        break;
      default: embed(p.embedding, a.tokens, a.batch, operands, s.sums);
    }
    if (n + 1 == a.phase_count) break;
    bool waits = p.next_waits;
    __syncthreads();
    if (waits && threadIdx.x == 0) {
      __threadfence();
      arrive(a.arrived);
    }
    read_phase(&s.phase, a.phases + n + 1);
    __syncthreads();
    if (!waits) continue;
    for (int i = 0; i < p.ranges; i++) fetch_share(p.range[i].data, p.range[i].bytes);
    target += gridDim.x;
    if (threadIdx.x == 0) await(a.arrived, target);
    __syncthreads();
  }
}
