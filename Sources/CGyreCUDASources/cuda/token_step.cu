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
    old.stamp = *(const unsigned *)(at + 4);
    bias = p.bias ? s.bias[thread][0] : 0.f;
    second = p.bias && p.paired ? s.bias[thread][1] : 0.f;
  }
};

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

// The sum of an output's parts from all warps.
GYRE_DEVICE float warps_sum(const float *at) {
#if M == 1
  return sum_of_eight(at);
#else
  float all = 0.f;
#pragma unroll
  for (int i = 0; i < WARPS; i++) all += at[i * M];
  return all;
#endif
}

// The thread's output, its sums aside: read before the barrier behind which those are there.
struct Ending {
  const gyre_token_product &p;
  int row, n, rule, function;
  long b;
  float alpha, beta;
  const float *at;
  int second;  // from its sums to those of the other half of a pair, or 0
  bool scaled, plain;
  char *to;
  unsigned stamp;
  Extra extra;
  GYRE_DEVICE Ending(const gyre_token_phase &phase, const gyre_token_shared &s, const float *partials, unsigned base)
      : p(phase.product[max(s.output[this_thread()][0], 0) & 255]) {
    int thread = this_thread();
    row = s.output[thread][1], n = p.from + row, b = M == 1 ? 0 : max(s.output[thread][0], 0) >> 8;
    rule = p.rule, function = p.function, alpha = p.alpha, beta = p.beta, scaled = p.scaled;
    at = partials + (p.before + row) * PARTIAL_ROW + b;
    second = p.paired ? p.own * PARTIAL_ROW : 0;
    plain = p.y.phase < 0, stamp = base + p.y.phase;
    to = p.y.data + (b * p.y.stride + n) * (plain ? 4 : 8);
    extra.take(s, thread, p, b, n);
  }
  // From the sums.
  GYRE_DEVICE void finish(unsigned base, float x, float other) const {
    x += extra.bias;
    other += extra.second;
    float y = x;
    if (rule == GYRE_TOKEN_ADD) {
      float old = extra.old.stamp == base + p.old.phase ? extra.old.x : take(p.old, b, n, base);
      y = alpha * old + beta * x;
    } else if (rule == GYRE_TOKEN_MIN_GRU) {
      float z = sigmoid(x);
      y = (1.f - z) * extra.old.x + z * (other >= 0.f ? other + 0.5f : sigmoid(other));
      give(p.old, b, n, base, y);
    } else if (rule == GYRE_TOKEN_CAP) {
      y = alpha * tanhf(x / alpha);
    } else {
      if (function == RELU_SQUARED) y = x > 0.f ? x * x : 0.f;
      else if (is_usual(function)) y = usual(function, x);
      else y = unary(function, x);
      if (rule == GYRE_TOKEN_GATED) y *= other;
    }
    if (plain) *(float *)to = y;
    else write_stamped(to, y, stamp);
  }
};

// After `multiply_rows`, and `ask` of the thread's first output.
GYRE_DEVICE void end_outputs(const gyre_token_phase &p, int batch, int operand_floats) {
  gyre_token_shared &s = TOKEN_SHARED;
  const float *partials = (const float *)operands_of_block() + operand_floats;
  unsigned base = TOKEN_WORD(base), *count = s.counts + now();
  int outputs = p.product[0].outputs * batch, j = this_thread();
  copies_await();
  // All lanes of a warp come to one barrier, with an output or none. Tools want all warps at one.
  if (CHECKED) block_barrier();
  else if ((j & ~31) >= outputs) return block_barrier();
  for (bool first = !CHECKED;; first = false) {
    Ending e(p, s, partials, base);
    if (first) block_barrier();
    if (j >= outputs) return;
    float x = warps_sum(e.at), other = e.second ? warps_sum(e.at + e.second) : 0.f;
    if (e.scaled) {
      float scale = later_scale(p.operand[0], e.b);
      x *= scale, other *= scale;
    }
    e.finish(base, x, other);
    if ((this_thread() & 31) == 0) count_given(count, min(outputs - j, 32));
    j += GYRE_TOKEN_THREADS;
    if (j >= outputs) return;
    ask(p, batch, j, s);
    copies_await();
  }
}

static __device__ __noinline__ void embed(const int *tokens, int batch) {
  const gyre_token_embedding &e = phase_now().embedding;
  float *work = (float *)operands_of_block(), *shared = TOKEN_SHARED.sums;
  unsigned base = TOKEN_WORD(base);
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

// The warp beside the computing ones: makes the moves of phase n while it runs, describes a phase two
// ahead and brings what that one reads nearer.
GYRE_DEVICE void attend(const gyre_token_step_args &a, unsigned base) {
  gyre_token_shared &s = TOKEN_SHARED;
  int lane = threadIdx.x & 31;
  for (int n = 1 - GYRE_TOKEN_DESCRIBED; n < a.phase_count; n++) {
    if (n >= 0) {
      phase_await(s.begun, n);
      make_moves(described(n), a.batch, base, lane);
      __syncwarp();
      if (arrives(lane == 0)) phase_arrive(s.moved, n);
    }
    int ahead = n + GYRE_TOKEN_DESCRIBED - 1;
    if (ahead >= a.phase_count) continue;
    gyre_token_phase &next = described(ahead);
    copy_phase(&next, a.phases + ahead, lane, 32);
    __syncwarp();
    plan(next, lane);
    if (next.kind == GYRE_TOKEN_MATRIX_PHASE && lane == 0) plan_tiles(next.matrix, a.batch);
    if (next.kind == GYRE_TOKEN_ATTENTION_PHASE) plan_part(next.attention, a.batch, *a.position);
    __syncwarp();
    if (arrives(lane == 0)) phase_arrive(s.ready, ahead);
    for (int i = 0; i < next.ranges; i++) fetch_share(next.range[i].data, next.range[i].bytes, lane);
  }
}

// From the barrier after operands to outputs.
GYRE_DEVICE void product_phase(const gyre_token_step_args &a) {
  begin_phase();
  multiply_rows(a.depth, a.operand_floats);
  int n = now();
  const gyre_token_phase &p = described(n);
  // What the moves read is overwritten by those who wait for this phase.
  if (p.moves) phase_await(TOKEN_SHARED.moved, n);
  end_outputs(p, a.batch, a.operand_floats);
}

GYRE_DEVICE void compute(const gyre_token_step_args &a) {
  for (;;) {
    int n = now();
    if (n >= a.phase_count) return;
    phase_await(shared_anew().ready, n);
    if (word_kept(&described(n).kind) == GYRE_TOKEN_PRODUCT_PHASE) {
      ask(described(n), a.batch, this_thread(), shared_anew());
      if (phase_now().makes) make_operands(a.batch);
      else block_barrier();
      product_phase(a);
    } else {
      int kind = word_kept(&phase_now().kind);
      if (kind == GYRE_TOKEN_MATRIX_PHASE) {
        matrix_step(a.batch);
      } else if (kind == GYRE_TOKEN_ATTENTION_PHASE) {
        attention_step(a.batch);
      } else {
        block_barrier();
        begin_phase();
        embed(a.tokens, a.batch);
      }
      block_barrier();
    }
    // Of a phase without moves nobody asks for this barrier, which tools take for a wait that was forgotten.
    if (CHECKED) phase_await(shared_anew().moved, now());
    int thread = this_thread();
    if ((thread & 31) == 0) shared_anew().now[thread >> 5]++;
    __syncwarp();
  }
}

extern "C" __global__ void __launch_bounds__(GYRE_TOKEN_LAUNCH, 1)
    token_step(gyre_token_step_args a) {
  gyre_token_shared &s = TOKEN_SHARED;
  if (threadIdx.x < GYRE_TOKEN_DEPTH) {
    barrier_initialize(s.full + threadIdx.x, STAGE_COPIES);
    barrier_initialize(s.empty + threadIdx.x, WARPS * ARRIVALS(32));
  }
  if (threadIdx.x < GYRE_TOKEN_DESCRIBED) {
    barrier_initialize(s.ready + threadIdx.x, ARRIVALS(32));
    barrier_initialize(s.begun + threadIdx.x, ARRIVALS(GYRE_TOKEN_THREADS));
    barrier_initialize(s.moved + threadIdx.x, ARRIVALS(32));
  }
  barriers_are_initialized();
  if (threadIdx.x < WARPS) s.place[threadIdx.x] = s.now[threadIdx.x] = 0;
  // Zero is the stamp of memory that nobody has written.
  if (threadIdx.x == 0) {
    s.rotated = -1;
    s.base = (unsigned)*a.position * (unsigned)a.phase_count + 1;
    s.half = (*a.position & 1) * a.phase_count;
    s.counts = a.counts + s.half;
    s.operands = SHARED_BYTES + a.depth * GYRE_TOKEN_STAGE;
  }
  __syncthreads();
  if (threadIdx.x < GYRE_TOKEN_THREADS) {
    compute(a);
  } else if (threadIdx.x < GYRE_TOKEN_THREADS + 32) {
    copy_stream(a);
  } else {
    if (blockIdx.x == 0)
      for (int i = threadIdx.x & 31; i < a.phase_count; i += 32)
        a.counts[(~*a.position & 1) * a.phase_count + i] = 0;
    attend(a, s.base);
  }
}
