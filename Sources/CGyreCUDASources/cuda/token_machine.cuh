// What one token's kernel asks of the machine: copies that bypass registers, barriers of a block's
// computing warps, and numbers that carry the stamp of who wrote them.
#pragma once
#include "checked.cuh"
#include "gyre_cuda_token_args.h"
#include "prelude.cuh"

#define WARPS (GYRE_TOKEN_THREADS / 32)
// Copies by the copy engine (sm_90); TOKEN_PORTABLE compiles the other way for a comparison.
#if __CUDA_ARCH__ >= 900 && !defined(TOKEN_PORTABLE)
#define COPY_ENGINE 1
#else
#define COPY_ENGINE 0
#endif

// The thread's number, read anew: what follows from it is not kept in registers from phase to phase.
GYRE_DEVICE int this_thread() {
  int i;
  asm volatile("mov.u32 %0, %tid.x;" : "=r"(i));
  return i;
}

// All computing threads.
GYRE_DEVICE void block_barrier() {
  asm volatile("bar.sync 1, %0;" ::"n"(GYRE_TOKEN_THREADS) : "memory");
}

GYRE_DEVICE unsigned shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

// A block's shared memory: what its warps tell each other, at an address that everybody knows without a
// register; the ring of weights, operands, the warps' sums.
extern __shared__ __align__(128) char token_memory[];
#define SHARED_BYTES ((int)(sizeof(gyre_token_shared) + 127) & ~127)  // the ring begins with a line
#define TOKEN_SHARED (*(gyre_token_shared *)token_memory)
GYRE_DEVICE char *ring_of_block() { return token_memory + SHARED_BYTES; }

// MARK: - Barriers in shared memory

GYRE_DEVICE void barrier_initialize(unsigned long *barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// By who has initialized some, before a barrier of the block.
GYRE_DEVICE void barriers_are_initialized() {
#if COPY_ENGINE
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
// Whether the barrier's round `parity` is over, or soon after.
GYRE_DEVICE bool barrier_is_over(unsigned long *barrier, unsigned parity) {
  unsigned done;
  asm volatile(
      "{ .reg .pred p;\n"
#if COPY_ENGINE
      "mbarrier.try_wait.parity.shared.b64 p, [%1], %2;\n"
#else
      "mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n"
#endif
      "selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(parity)
      : "memory");
  return done;
}
GYRE_DEVICE void barrier_await(unsigned long *barrier, unsigned parity) {
  while (!barrier_is_over(barrier, parity)) {}
}
GYRE_DEVICE void barrier_arrive(unsigned long *barrier) {
  asm volatile("{ .reg .b64 t; mbarrier.arrive.shared.b64 t, [%0]; }" ::"r"(shared_address(barrier)) : "memory");
}
// Phase n's of barriers that phases take in turn. A phase's barriers are over before the phase as many later begins.
GYRE_DEVICE void phase_await(unsigned long *barriers, int n) {
  barrier_await(barriers + (unsigned)n % GYRE_TOKEN_DESCRIBED, (unsigned)n / GYRE_TOKEN_DESCRIBED & 1);
}
GYRE_DEVICE void phase_arrive(unsigned long *barriers, int n) {
  barrier_arrive(barriers + (unsigned)n % GYRE_TOKEN_DESCRIBED);
}

// MARK: - Stages of the ring

// Arrivals at a stage's barrier when it is full.
#define STAGE_COPIES (COPY_ENGINE ? 1 : 32)
// Copies by the engine come after ordinary reads of a stage only behind a fence between the two ways to memory: by
// the copying warp behind the barrier that says that all have read, which costs the readers nothing, or by the
// readers before they arrive, where tools look for it.
GYRE_DEVICE void stage_fence([[maybe_unused]] bool by_readers) {
#if COPY_ENGINE
  if (by_readers == CHECKED) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
// By the copying warp: `bytes` in all (a multiple of 16) will come in the copies after this.
GYRE_DEVICE void stage_expect(unsigned long *full, int bytes, int lane) {
#if COPY_ENGINE
  if (lane == 0)
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(full)),
                 "r"(bytes)
                 : "memory");
  __syncwarp();
#endif
}
// By the first `runs` lanes, a run each. A copy costs the engine 120 clocks, however short it is. What is
// read once a token stays out of the way of what is read more often.
GYRE_DEVICE void stage_copy(
    char *to, const char *from, int bytes, unsigned long *full, int lane, int runs) {
#if COPY_ENGINE
  if (lane >= runs) return;
  unsigned long policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(full)), "l"(policy)
      : "memory");
#else
  unsigned target = shared_address(to);
  for (int n = 0; n < runs; n++) {
    unsigned at = __shfl_sync(~0u, target, n);
    const char *source = (const char *)__shfl_sync(~0u, (unsigned long)from, n);
    int size = __shfl_sync(~0u, bytes, n);
    for (int i = lane * 16; i < size; i += 512)
      asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(at + i), "l"(source + i)
                   : "memory");
  }
#endif
}
GYRE_DEVICE void stage_end(unsigned long *full) {
#if !COPY_ENGINE
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(full))
               : "memory");
#endif
}

// BYTES (4 or 16) to shared memory past the registers; 16 come past the first-level cache too.
template <int BYTES> GYRE_DEVICE void copy_aside(void *to, const char *from) {
  if (BYTES == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from)
                 : "memory");
}
// For the thread's own copies.
GYRE_DEVICE void copies_await() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// MARK: - Words of a warp

// What would otherwise live in registers over calls, so on the stack.
GYRE_DEVICE int word_kept(const void *p) {
  int x;
  asm volatile("ld.shared.s32 %0, [%1];" : "=r"(x) : "r"(shared_address(p)) : "memory");
  return x;
}
GYRE_DEVICE void word_write(void *p, int x) {
  asm volatile("st.shared.s32 [%0], %1;" ::"r"(shared_address(p)), "r"(x) : "memory");
}

// The same of the block's state, whose address is found anew: kept over calls it would go to the stack.
GYRE_DEVICE gyre_token_shared &shared_anew() {
  unsigned at;
  asm volatile("mov.u32 %0, token_memory;" : "=r"(at));
  return *(gyre_token_shared *)__cvta_shared_to_generic(at);
}
#define TOKEN_WORD(field) word_kept(&shared_anew().field)
GYRE_DEVICE char *operands_of_block() { return token_memory + TOKEN_WORD(operands); }

// MARK: - Numbers with stamps

// The stamp of a phase is `base` + the phase; no two launches share one. A number and its stamp are
// written and read as one word of 8 bytes, so the stamp says that the number is there. A vector is only
// overwritten by blocks that wait for something that its readers wrote after reading: every block writes
// a part of every phase of products, and every number is waited for.
struct Stamped {
  float x;
  unsigned stamp;
};
GYRE_DEVICE bool present(const gyre_token_vector &v) { return v.data != nullptr; }
GYRE_DEVICE char *place(const gyre_token_vector &v, long b, long i) {
  return v.data + (b * v.stride + i) * 8;
}
GYRE_DEVICE Stamped read_stamped(const char *p) {
  Stamped s;
  asm volatile(
      "{ .reg .b64 a; ld.relaxed.gpu.global.b64 a, [%2]; mov.b64 {%0, %1}, a; }"
      : "=f"(s.x), "=r"(s.stamp)
      : "l"(p));
  return s;
}
struct StampedTwo {
  float x;
  unsigned stamp_x;
  float y;
  unsigned stamp_y;
  GYRE_DEVICE bool has(unsigned stamp) const { return stamp_x == stamp && stamp_y == stamp; }
};
GYRE_DEVICE StampedTwo read_two(const char *p) {
  StampedTwo s;
  asm volatile(
      "{ .reg .b64 a, b; ld.relaxed.gpu.global.v2.b64 {a, b}, [%4]; mov.b64 {%0, %1}, a;\n"
      "mov.b64 {%2, %3}, b; }"
      : "=f"(s.x), "=r"(s.stamp_x), "=f"(s.y), "=r"(s.stamp_y)
      : "l"(p));
  return s;
}
// A block that waits for seconds has lost the others: the kernel ends with an error rather than never.
GYRE_DEVICE void wait_again(int &waits) {
  if (!CHECKED && ++waits == 1 << 24) __trap();
}

// Past the first-level cache.
GYRE_DEVICE float fresh(const float *p) {
  float x;
  asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(x) : "l"(p));
  return x;
}
// Element i of sequence b, asked for and, later, waited for.
struct Asked {
  const char *p;
  unsigned stamp;
  Stamped s;
  GYRE_DEVICE Asked(const gyre_token_vector &v, long b, long i, unsigned base)
      : p(place(v, b, i)), stamp(base + v.phase), s(read_stamped(p)) {}
  GYRE_DEVICE float get() {
    for (int waits = 0; s.stamp != stamp; wait_again(waits)) s = read_stamped(p);
    return s.x;
  }
};
GYRE_DEVICE float take(const gyre_token_vector &v, long b, long i, unsigned base) {
  return Asked(v, b, i, base).get();
}
// Elements i and i + 1, i even, of a vector that lies at 16 bytes.
GYRE_DEVICE void write_stamped(char *p, float x, unsigned stamp) {
  asm volatile("{ .reg .b64 a; mov.b64 a, {%1, %2}; st.relaxed.gpu.global.b64 [%0], a; }" ::"l"(p), "f"(x),
               "r"(stamp)
               : "memory");
}
// Writes element i of sequence b.
GYRE_DEVICE void give(const gyre_token_vector &v, long b, long i, unsigned base, float x) {
  if (v.phase < 0) ((float *)v.data)[b * v.stride + i] = x;
  else write_stamped(place(v, b, i), x, base + v.phase);
}

// Asking for numbers that are not there keeps the weights' stream waiting. So phases count what they
// have written, and others ask when nearly all is there; what says that a number is there is its stamp.
// A launch uses one half of the counts and clears the other.
GYRE_DEVICE void count_given(unsigned *count, int n) {
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(count), "r"(n) : "memory");
}
GYRE_DEVICE void await_count(const unsigned *count, unsigned enough) {
  unsigned seen;
  int waits = 0;
  do {
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(count) : "memory");
    wait_again(waits);
  } while (seen < enough);
}

// Brings the lines of a range that are this block's share into the second-level cache; by a warp.
GYRE_DEVICE void fetch_share(const char *p, long bytes, int lane) {
  long lines = (bytes + 127) / 128;
  for (long i = (long)lane * gridDim.x + blockIdx.x; i < lines; i += 32l * gridDim.x)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p + i * 128));
}

// Sums over the computing threads in a fixed order, to all of them. `shared` holds 16 floats that are
// free again one barrier later.
GYRE_DEVICE float team_sum(float x, float *shared) {
  int thread = this_thread();
  x = warp_sum(x);
  if ((thread & 31) == 0) shared[thread >> 5] = x;
  block_barrier();
  float all = 0.f;
#pragma unroll
  for (int i = 0; i < WARPS; i += 4) {
    float4 y = *(const float4 *)(shared + i);
    all += (y.x + y.y) + (y.z + y.w);
  }
  return all;
}
