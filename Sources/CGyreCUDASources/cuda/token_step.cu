// One token of a whole model: one block a multiprocessor, all of them at once, walks the phases.
// Weights stream through shared memory without regard to phases (token_stream.cuh), copied by a warp of
// their own; another warp does what nobody waits for. What depends on the token goes through vectors
// that stay in the second-level cache.
// Variants: TOKEN_VARIANT=0..3
#include "token_attention.cuh"
#include "token_matrix.cuh"

// What an output takes besides its sums: read while weights stream.
struct Extra {
  float bias, second, old;
  GYRE_DEVICE void read(const gyre_token_product &p, long b, int n) {
    old = p.rule == GYRE_TOKEN_ADD       ? fresh(p.y, b, n)
          : p.rule == GYRE_TOKEN_MIN_GRU ? fresh(p.state, b, n)
                                         : 0.f;
    bias = load_or(p.bias, n, 0.f);
    second = p.paired ? load_or(p.bias, p.rows + n, 0.f) : 0.f;
  }
};

// y of one output from its sums; `second` of the other half of a pair.
GYRE_DEVICE void finish(
    const gyre_token_product &p, long b, int n, float x, float second, const Extra &extra) {
  x += extra.bias;
  second += extra.second;
  float y = x;
  if (p.rule == GYRE_TOKEN_ADD) {
    y = p.alpha * extra.old + p.beta * x;
  } else if (p.rule == GYRE_TOKEN_MIN_GRU) {
    float z = sigmoid(x);
    y = (1.f - z) * extra.old + z * (second >= 0.f ? second + 0.5f : sigmoid(second));
    p.state.data[b * p.state.stride + n] = y;
  } else if (p.rule == GYRE_TOKEN_CAP) {
    y = p.alpha * tanhf(x / p.alpha);
  } else {
    if (p.function == SILU) y = quick_silu(x);
    else if (p.function >= 0) y = unary(p.function, x);
    if (p.rule == GYRE_TOKEN_GATED) y *= second;
  }
  p.y.data[b * p.y.stride + n] = y;
}

// The block's output j of a phase.
struct Output {
  int product, row, n;
  long b;
  GYRE_DEVICE bool find(const gyre_token_phase &p, int batch, int j) {
    for (product = 0; product < p.products; product++) {
      int own = p.product[product].own;
      if (j < own * batch) {
        b = M == 1 ? 0 : j / own;
        row = j - (int)b * own;
        n = p.product[product].from + row;
        return true;
      }
      j -= own * batch;
    }
    return false;
  }
};

// The sum of an output's parts from all warps.
GYRE_DEVICE float warps_sum(const float *at) {
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < WARPS; i += 4) {
    if (M == 1) {
      float4 x = *(const float4 *)(at + i);
      sum += (x.x + x.y) + (x.z + x.w);
    } else {
      sum += (at[i * M] + at[(i + 1) * M]) + (at[(i + 2) * M] + at[(i + 3) * M]);
    }
  }
  return sum;
}

GYRE_DEVICE void multiply(
    const gyre_token_phase &p, Reader &reader, const float *operands, float *partials, int batch) {
  Output output;
  Extra extra;
  bool exists = output.find(p, batch, threadIdx.x);
  if (exists) extra.read(p.product[output.product], output.b, output.n);
#pragma unroll 1
  for (int i = 0; i < p.products; i++) {
    const gyre_token_product &q = p.product[i];
    if (q.own == 0) continue;
    reader.multiply(q.paired ? 2 * q.own : q.own, q.columns, q.slice,
                    operands + p.operand[q.operand].offset, padded(q.columns),
                    partials + q.before * PARTIAL_ROW);
  }
  block_barrier();
  for (int j = threadIdx.x; exists; j += GYRE_TOKEN_THREADS) {
    if (j != threadIdx.x) {
      exists = output.find(p, batch, j);
      if (!exists) break;
      extra.read(p.product[output.product], output.b, output.n);
    }
    const gyre_token_product &q = p.product[output.product];
    const float *at = partials + (q.before + output.row) * PARTIAL_ROW + output.b;
    float x = warps_sum(at), second = q.paired ? warps_sum(at + q.own * PARTIAL_ROW) : 0.f;
    finish(q, output.b, output.n, x, second, extra);
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
    float mean = e.norm == 2 ? team_sum(sum, shared + WARPS) / e.size : 0.f;
    for (int i = threadIdx.x; i < e.size; i += GYRE_TOKEN_THREADS) {
      float x = work[i] - mean;
      square += x * x;
    }
    float scale = 1.f / sqrtf(team_sum(square, shared) / e.size + e.epsilon);
    for (int i = threadIdx.x; i < e.size; i += GYRE_TOKEN_THREADS) {
      float x = work[i];
      if (e.norm)
        x = (x - mean) * scale * load_or(e.weight, i, 1.f) + load_or(e.bias, i, 0.f);
      e.y.data[b * e.y.stride + i] = x;
    }
    block_barrier();
  }
}

GYRE_DEVICE void copy_phase(gyre_token_phase *to, const gyre_token_phase *from, int thread, int threads) {
  static_assert(sizeof(gyre_token_phase) % 8 == 0, "phases are copied in words");
  for (int i = thread; i < (int)(sizeof(gyre_token_phase) / 8); i += threads)
    ((long *)to)[i] = ((const long *)from)[i];
}

// The warp beside the computing ones: while phase n runs it describes the next, brings what that one
// reads nearer and makes the moves of n.
GYRE_DEVICE void attend(const gyre_token_step_args &a, gyre_token_shared &s) {
  int lane = threadIdx.x & 31;
  for (int n = 0; n < a.phase_count; n++) {
    word_await(&s.progress, n);
    const gyre_token_phase &p = s.phase[n & 1], &next = s.phase[(n + 1) & 1];
    if (n + 1 < a.phase_count) {
      copy_phase(&s.phase[(n + 1) & 1], a.phases + n + 1, lane, 32);
      __syncwarp();
      plan(s.phase[(n + 1) & 1], lane);
      __syncwarp();
      if (lane == 0) word_write(&s.ready, n + 1);
      for (int i = 0; i < next.ranges; i++) fetch_share(next.range[i].data, next.range[i].bytes, lane);
    }
    make_moves(p, a.batch, lane);
    __syncwarp();
    if (lane == 0) word_write(&s.moved, n);
  }
}

GYRE_DEVICE void compute(
    const gyre_token_step_args &a, const char *ring, float *operands, float *partials,
    gyre_token_shared &s) {
  Reader reader;
  reader.start(a, ring, s);
  unsigned target = 0;
  long position = *a.position;
  for (int n = 0; n < a.phase_count; n++) {
    const gyre_token_phase &p = s.phase[n & 1];
    switch (p.kind) {
      case GYRE_TOKEN_PRODUCT_PHASE:
        if (p.waits) make_operands(p, a.batch, operands, s.sums);
        multiply(p, reader, operands, partials, a.batch);
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
    // One thread a thing: the first one's way through the grid is what everybody waits for.
    if (threadIdx.x == 32) word_await(&s.moved, n);
    block_barrier();
    if (threadIdx.x == 0 && waits) {
      arrive(a.arrived);
      target += gridDim.x;
      await(a.arrived, target);
    }
    if (threadIdx.x == 32) word_await(&s.ready, n + 1);
    block_barrier();
    if (threadIdx.x == 64) word_write(&s.progress, n + 1);
  }
}

extern "C" __global__ void __launch_bounds__(GYRE_TOKEN_LAUNCH, 1)
    token_step(gyre_token_step_args a) {
  extern __shared__ __align__(128) char memory[];
  float *operands = (float *)(memory + a.depth * GYRE_TOKEN_STAGE);
  float *partials = operands + a.operand_floats;
  gyre_token_shared &s = *(gyre_token_shared *)(partials + a.partial_floats);
  if (threadIdx.x < GYRE_TOKEN_DEPTH) stage_initialize(s.full + threadIdx.x, s.empty + threadIdx.x);
  if (threadIdx.x == 0) s.progress = 0, s.ready = 0, s.moved = -1;
  copy_phase(&s.phase[0], a.phases, threadIdx.x, GYRE_TOKEN_LAUNCH);
  __syncthreads();
  if (threadIdx.x < 32) plan(s.phase[0], threadIdx.x);
  __syncthreads();
  if (threadIdx.x < GYRE_TOKEN_THREADS) {
    compute(a, memory, operands, partials, s);
  } else if (threadIdx.x < GYRE_TOKEN_THREADS + 32) {
    copy_stream(a, memory, s);
  } else {
    attend(a, s);
  }
}
