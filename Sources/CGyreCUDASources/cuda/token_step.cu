// One token of a whole model: one block a multiprocessor, all of them at once, walks the phases.
// Weights stream through shared memory without regard to phases (token_stream.cuh), copied by a warp of
// its own; another warp does what nobody waits for. What depends on the token goes through vectors
// that stay in the second-level cache, numbers with stamps, so that nobody waits for the whole grid.
// Variants: TOKEN_VARIANT=0..3
#include "token_attention.cuh"
#include "token_matrix.cuh"

// What an output takes besides its sums: on its way while weights are multiplied, past the registers.
// For as many outputs as threads.
struct Extra {
  float bias, second;
  Stamped old;
  GYRE_DEVICE static const float *state(const gyre_token_product &p, long b, int n) {
    return (const float *)p.old.data + b * p.old.stride + n;
  }
  // Of 16 bytes that are copied, the number's.
  GYRE_DEVICE static long aside(const gyre_token_product &p, long b, int n) {
    return p.rule == GYRE_TOKEN_ADD ? (long)place(p.old, b, n) & 15 : (long)state(p, b, n) & 15;
  }
  GYRE_DEVICE static void ask(
      gyre_token_shared &s, int thread, const gyre_token_product &p, long b, int n) {
    const char *from = p.rule == GYRE_TOKEN_ADD       ? place(p.old, b, n)
                       : p.rule == GYRE_TOKEN_MIN_GRU ? (const char *)state(p, b, n)
                                                      : nullptr;
    if (from) copy_aside<16>(s.old[thread], (const char *)((long)from & ~15l));
    if (!p.bias) return;
    copy_aside<4>(&s.bias[thread][0], (const char *)(p.bias + n));
    if (p.paired) copy_aside<4>(&s.bias[thread][1], (const char *)(p.bias + p.rows + n));
  }
  GYRE_DEVICE void take(
      const gyre_token_shared &s, int thread, const gyre_token_product &p, long b, int n) {
    const char *at = (const char *)s.old[thread] + aside(p, b, n);
    old.x = *(const float *)at;
    if (p.rule == GYRE_TOKEN_ADD) old.stamp = *(const unsigned *)(at + 4);
    bias = p.bias ? s.bias[thread][0] : 0.f;
    second = p.bias && p.paired ? s.bias[thread][1] : 0.f;
  }
};

// y of one output from its sums; `second` of the other half of a pair.
GYRE_DEVICE void finish(
    const gyre_token_product &p, long b, int n, unsigned base, float x, float second,
    const Extra &extra) {
  x += extra.bias;
  second += extra.second;
  float y = x;
  if (p.rule == GYRE_TOKEN_ADD) {
    float old = extra.old.stamp == base + p.old.phase ? extra.old.x : take(p.old, b, n, base);
    y = p.alpha * old + p.beta * x;
  } else if (p.rule == GYRE_TOKEN_MIN_GRU) {
    float z = sigmoid(x);
    y = (1.f - z) * extra.old.x + z * (second >= 0.f ? second + 0.5f : sigmoid(second));
    give(p.old, b, n, base, y);
  } else if (p.rule == GYRE_TOKEN_CAP) {
    y = p.alpha * tanhf(x / p.alpha);
  } else {
    if (p.function == RELU_SQUARED) y = x > 0.f ? x * x : 0.f;
    else if (is_usual(p.function)) y = usual(p.function, x);
    else y = unary(p.function, x);
    if (p.rule == GYRE_TOKEN_GATED) y *= second;
  }
  give(p.y, b, n, base, y);
}

// The block's output j of a phase.
struct Output {
  int product, row;
  long b;
  GYRE_DEVICE bool find(const gyre_token_phase &p, int batch, int j) {
    for (product = 0; product < p.products; product++) {
      int own = p.product[product].own;
      if (j < own * batch) {
        b = M == 1 ? 0 : j / own;
        row = j - (int)b * own;
        return true;
      }
      j -= own * batch;
    }
    return false;
  }
};

// Asks for what the thread's output j takes besides its sums, and notes which it is; -1: none.
GYRE_DEVICE void ask(const gyre_token_phase &p, int batch, int j, gyre_token_shared &s) {
  int thread = this_thread();
  Output output;
  bool exists = output.find(p, batch, j);
  s.output[thread][0] = exists ? output.product | (int)output.b << 8 : -1;
  s.output[thread][1] = output.row;
  if (!exists) return;
  const gyre_token_product &q = p.product[output.product];
  Extra::ask(s, thread, q, output.b, q.from + output.row);
}

// The sum of an output's parts from all slices of its columns.
GYRE_DEVICE float slices_sum(const float *at, int slices) {
  float sum[TEAM];
#pragma unroll
  for (int i = 0; i < TEAM; i++) sum[i] = at[i * M];
  for (int i = TEAM; i < slices; i += TEAM)
#pragma unroll
    for (int j = 0; j < TEAM; j++) sum[j] += at[(i + j) * M];
  float all = sum[0];
#pragma unroll
  for (int i = 1; i < TEAM; i++) all += sum[i];
  return all;
}

// After `ask` of the thread's first output.
GYRE_DEVICE unsigned multiply(
    const gyre_token_phase &p, const gyre_token_step_args &a, const char *ring, gyre_token_shared &s,
    const char *operands, float *partials, unsigned base, unsigned *count, int phase, unsigned turn) {
  int outputs = 0;
#pragma unroll 1
  for (int i = 0; i < p.products; i++) {
    const gyre_token_product &q = p.product[i];
    if (q.own == 0) continue;
    outputs += q.own * a.batch;
    turn = multiply_rows(q, ring, s, a.depth, operands + p.operand[q.operand].offset,
                         partials + q.before * PARTIAL_ROW, turn);
  }
  // What the moves read is overwritten by those who wait for this phase.
  if (p.moves)
    while (word_read(&s.moved) < phase) {}
  copies_await();
  block_barrier();
  int thread = this_thread();
#pragma unroll 1
  for (int j = thread; j < outputs; j += GYRE_TOKEN_THREADS) {
    if (j != thread) {
      ask(p, a.batch, j, s);
      copies_await();
    }
    int which = s.output[thread][0], row = s.output[thread][1];
    const gyre_token_product &q = p.product[which & 255];
    long b = M == 1 ? 0 : which >> 8;
    Extra extra;
    extra.take(s, thread, q, b, q.from + row);
    const float *at = partials + (q.before + row) * PARTIAL_ROW + b;
    int slices = min(q.pieces * TEAM, SLOTS);
    float x = slices_sum(at, slices);
    float second = q.paired ? slices_sum(at + q.own * PARTIAL_ROW, slices) : 0.f;
    finish(q, b, q.from + row, base, x, second, extra);
    if ((thread & 31) == 0) count_given(count, min(outputs - j, 32));
  }
  return turn;
}

static __device__ __noinline__ void embed(
    const gyre_token_embedding &e, const int *tokens, int batch, unsigned base, float *work,
    float *shared) {
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
        x = (x - mean) * scale * (e.weight ? e.weight[i] : 1.f) + (e.bias ? e.bias[i] : 0.f);
      give(e.y, b, i, base, x);
    }
    block_barrier();
  }
}

GYRE_DEVICE void copy_phase(gyre_token_phase *to, const gyre_token_phase *from, int thread, int threads) {
  static_assert(sizeof(gyre_token_phase) % 8 == 0, "phases are copied in words");
  for (int i = thread; i < (int)(sizeof(gyre_token_phase) / 8); i += threads)
    ((long *)to)[i] = ((const long *)from)[i];
}
GYRE_DEVICE const gyre_token_phase &described(const gyre_token_shared &s, int n) {
  return s.phase[n % GYRE_TOKEN_DESCRIBED];
}

// The warp beside the computing ones: makes the moves of phase n while it runs, describes a phase two
// ahead and brings what that one reads nearer.
GYRE_DEVICE void attend(const gyre_token_step_args &a, gyre_token_shared &s, unsigned base) {
  int lane = threadIdx.x & 31;
  for (int n = 1 - GYRE_TOKEN_DESCRIBED; n < a.phase_count; n++) {
    while (word_read(&s.progress) < n) __nanosleep(20);
    if (n >= 0 && described(s, n).moves) {
      make_moves(described(s, n), a.batch, base, lane);
      __syncwarp();
      if (lane == 0) word_write(&s.moved, n);
    }
    int ahead = n + GYRE_TOKEN_DESCRIBED - 1;
    if (ahead >= a.phase_count) continue;
    gyre_token_phase &next = s.phase[ahead % GYRE_TOKEN_DESCRIBED];
    copy_phase(&next, a.phases + ahead, lane, 32);
    __syncwarp();
    plan(next, lane);
    __syncwarp();
    if (lane == 0) word_write(&s.ready, ahead);
    for (int i = 0; i < next.ranges; i++) fetch_share(next.range[i].data, next.range[i].bytes, lane);
  }
}

GYRE_DEVICE void compute(
    const gyre_token_step_args &a, const char *ring, char *operands, float *partials,
    gyre_token_shared &s, unsigned base) {
  unsigned turn = first_turn(a.depth);
  long position = *a.position;
  unsigned *counts = a.counts + (position & 1) * a.phase_count;
  for (int n = 0; n < a.phase_count; n++) {
    while (word_read(&s.ready) < n) {}
    const gyre_token_phase &p = described(s, n);
    if (p.kind == GYRE_TOKEN_PRODUCT_PHASE) {
      ask(p, a.batch, this_thread(), s);
      if (p.enough) {
        if (threadIdx.x == 0) await_count(counts + p.awaited, p.enough);
        block_barrier();
      }
      if (p.makes) make_operands(p, a.batch, base, operands, s.sums);
      else block_barrier();
      if (threadIdx.x == 64) word_write(&s.progress, n);
      turn = multiply(p, a, ring, s, operands, partials, base, counts + n, n, turn);
      continue;
    }
    block_barrier();
    if (threadIdx.x == 64) word_write(&s.progress, n);
    if (p.kind == GYRE_TOKEN_MATRIX_PHASE)
      matrix_step(p.matrix, a.batch, base, counts + n, *(MatrixWork *)operands);
    else if (p.kind == GYRE_TOKEN_ATTENTION_PHASE)
      attention_step(p.attention, a.batch, position, base, counts + n, *(AttentionWork *)operands, s);
    else
      embed(p.embedding, a.tokens, a.batch, base, (float *)operands, s.sums);
    block_barrier();
  }
}

extern "C" __global__ void __launch_bounds__(GYRE_TOKEN_LAUNCH, 1)
    token_step(gyre_token_step_args a) {
  extern __shared__ __align__(128) char memory[];
  char *operands = memory + a.depth * GYRE_TOKEN_STAGE;
  float *partials = (float *)operands + a.operand_floats;
  gyre_token_shared &s = *(gyre_token_shared *)(partials + a.partial_floats);
  if (threadIdx.x < GYRE_TOKEN_DEPTH) stage_initialize(s.full + threadIdx.x, s.empty + threadIdx.x);
  if (threadIdx.x == 0) s.progress = s.ready = s.moved = -1, s.rotated = -1;
  // Zero is the stamp of memory that nobody has written.
  unsigned base = (unsigned)*a.position * (unsigned)a.phase_count + 1;
  __syncthreads();
  if (threadIdx.x < GYRE_TOKEN_THREADS) {
    compute(a, memory, operands, partials, s, base);
  } else if (threadIdx.x < GYRE_TOKEN_THREADS + 32) {
    copy_stream(a, memory, s);
  } else {
    if (blockIdx.x == 0)
      for (int i = threadIdx.x & 31; i < a.phase_count; i += 32)
        a.counts[(~*a.position & 1) * a.phase_count + i] = 0;
    attend(a, s, base);
  }
}
