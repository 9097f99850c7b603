// The fork-join pool. A job is cut into chunks; who is free claims the next one from a ticket, the
// caller too, so a worker that is slow to wake costs balance and never completion. Workers spin for
// a while after a job, then sleep: longer than the small ops between two products of a decoding step
// take, because waking a worker costs the caller some microseconds and the product half its threads.
#if defined(__linux__)
#define _GNU_SOURCE
#endif
#include "ahead.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

enum { SPIN_NANOSECONDS = 150000, MAX_THREADS = 4096, STACK_BYTES = 4 << 20 };

static struct {
  // Chunk count in the high half, next unclaimed chunk in the low half: one atomic step both claims
  // a chunk and says which job's, so a late worker cannot mistake one job for another.
  _Alignas(64) _Atomic uint64_t ticket;
  _Alignas(64) _Atomic uint64_t finished;  // chunks of the current job that have been run
  _Alignas(64) _Atomic bool taken;         // a client thread owns the pool
  _Atomic bool stopping;
  _Atomic int sleeping;
  _Atomic bool caller_sleeping;
  _Atomic int wanted;                      // threads asked for; 0 = not set yet
  void (*body)(void *, long, long);
  void *context;
  long count;
  pthread_mutex_t mutex;
  pthread_cond_t wake, done;
  pthread_t *workers;
  int worker_count;
} pool = {.mutex = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .done = PTHREAD_COND_INITIALIZER};

static _Thread_local bool inside_body;

static inline void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");
#endif
}

static int64_t nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

// Spins until `condition` holds or the spinning time is over; says whether it holds. `idle` is done
// in between.
#define SPIN_UNTIL(condition, idle)                                     \
  ({                                                                    \
    bool ready = (condition);                                           \
    if (!ready) {                                                       \
      const int64_t deadline = nanoseconds() + SPIN_NANOSECONDS;        \
      do {                                                              \
        for (int i = 0; i < 32 && !(ready = (condition)); i++) idle;    \
      } while (!ready && nanoseconds() < deadline);                     \
    }                                                                   \
    ready;                                                              \
  })

static bool ticket_open(void) {
  const uint64_t ticket = atomic_load_explicit(&pool.ticket, memory_order_acquire);
  return (ticket & UINT32_MAX) < ticket >> 32;
}

static void run_chunks(void) {
  uint64_t ran = 0, chunks = 0;
  inside_body = true;
  while (ticket_open()) {
    const uint64_t ticket = atomic_fetch_add_explicit(&pool.ticket, 1, memory_order_acq_rel);
    const uint64_t index = ticket & UINT32_MAX;
    if (index >= ticket >> 32) break;
    chunks = ticket >> 32;
    const long begin = (long)((__int128)pool.count * index / chunks);
    const long end = (long)((__int128)pool.count * (index + 1) / chunks);
    pool.body(pool.context, begin, end);
    ran++;
    // A claim that follows may belong to the next job only once this one is finished, and it cannot
    // be while `ran` is unreported; so the sum below is of one job.
  }
  inside_body = false;
  if (!ran) return;
  const uint64_t finished = atomic_fetch_add(&pool.finished, ran) + ran;
  if (finished == chunks && atomic_load(&pool.caller_sleeping)) {
    pthread_mutex_lock(&pool.mutex);
    pthread_cond_signal(&pool.done);
    pthread_mutex_unlock(&pool.mutex);
  }
}

static void read_ahead(void) {
  if (!ck_read_ahead_piece()) relax();
}

static void *worker_main(void *unused) {
  (void)unused;
  for (;;) {
    if (!SPIN_UNTIL(ticket_open() || atomic_load_explicit(&pool.stopping, memory_order_relaxed),
                    read_ahead())) {
      pthread_mutex_lock(&pool.mutex);
      atomic_fetch_add(&pool.sleeping, 1);
      while (!ticket_open() && !atomic_load(&pool.stopping))
        pthread_cond_wait(&pool.wake, &pool.mutex);
      atomic_fetch_sub(&pool.sleeping, 1);
      pthread_mutex_unlock(&pool.mutex);
    }
    if (atomic_load(&pool.stopping)) return NULL;
    run_chunks();
  }
}

static void stop_workers(void) {
  pthread_mutex_lock(&pool.mutex);
  atomic_store(&pool.stopping, true);
  pthread_cond_broadcast(&pool.wake);
  pthread_mutex_unlock(&pool.mutex);
  for (int i = 0; i < pool.worker_count; i++) pthread_join(pool.workers[i], NULL);
  atomic_store(&pool.stopping, false);
  free(pool.workers);
  pool.workers = NULL;
  pool.worker_count = 0;
}

static void start_workers(int count) {
  pool.workers = calloc((size_t)count, sizeof *pool.workers);
  if (!pool.workers) return;
  sigset_t all, before;
  sigfillset(&all);
  // Signals belong to the program's own threads.
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  for (int i = 0; i < count; i++) {
    if (pthread_create(&pool.workers[i], &attributes, worker_main, NULL)) break;
    pool.worker_count++;
  }
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static int processor_count(void) {
#if defined(__linux__)
  for (int bits = 1024; bits <= 1 << 20; bits *= 4) {
    cpu_set_t *set = CPU_ALLOC((size_t)bits);
    if (!set) break;
    const size_t size = CPU_ALLOC_SIZE((size_t)bits);
    const int count = sched_getaffinity(0, size, set) == 0 ? CPU_COUNT_S(size, set) : 0;
    CPU_FREE(set);
    if (count > 0) return count;
  }
#elif defined(__APPLE__)
  int cores = 0;  // the fast ones: a chunk on a slow core would hold up the join
  size_t size = sizeof cores;
  if (sysctlbyname("hw.perflevel0.logicalcpu", &cores, &size, NULL, 0) == 0 && cores > 0)
    return cores;
#endif
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online > 0 ? (int)online : 1;
}

int ck_thread_count(void) {
  int count = atomic_load_explicit(&pool.wanted, memory_order_relaxed);
  if (count > 0) return count;
  const int processors = processor_count();
  int unset = 0;
  atomic_compare_exchange_strong(&pool.wanted, &unset, processors);
  return unset ? unset : processors;
}

void ck_set_thread_count(int count) {
  if (count < 1) count = 1;
  atomic_store(&pool.wanted, count > MAX_THREADS ? MAX_THREADS : count);
}

static void run_job(uint64_t chunks) {
  atomic_store_explicit(&pool.finished, 0, memory_order_relaxed);
  atomic_store(&pool.ticket, chunks << 32);
  const int sleeping = atomic_load(&pool.sleeping);
  if (sleeping > 0) {
    pthread_mutex_lock(&pool.mutex);
    if (chunks - 1 >= (uint64_t)sleeping) {
      pthread_cond_broadcast(&pool.wake);
    } else {
      for (uint64_t i = 1; i < chunks; i++) pthread_cond_signal(&pool.wake);
    }
    pthread_mutex_unlock(&pool.mutex);
  }
  run_chunks();
  if (SPIN_UNTIL(atomic_load_explicit(&pool.finished, memory_order_acquire) == chunks, relax()))
    return;
  pthread_mutex_lock(&pool.mutex);
  atomic_store(&pool.caller_sleeping, true);
  while (atomic_load(&pool.finished) != chunks) pthread_cond_wait(&pool.done, &pool.mutex);
  atomic_store(&pool.caller_sleeping, false);
  pthread_mutex_unlock(&pool.mutex);
}

void ck_parallel_for(long count, long grain, void (*body)(void *context, long begin, long end),
                     void *context) {
  if (count <= 0) return;
  if (grain < 1) grain = 1;
  const int threads = inside_body ? 1 : ck_thread_count();
  // Several chunks a thread even out unequal speeds; many threads pay more for each claim.
  const long per_thread = threads <= 16 ? 4 : 2;
  long chunks = count / grain;
  if (chunks > threads * per_thread) chunks = threads * per_thread;
  // A multiple of the thread count keeps equal work equal.
  if (chunks > threads) chunks -= chunks % threads;
  if (threads == 1 || chunks <= 1 || atomic_exchange_explicit(&pool.taken, true, memory_order_acquire)) {
    body(context, 0, count);
    return;
  }
  if (pool.worker_count != threads - 1) {
    if (pool.worker_count) stop_workers();
    start_workers(threads - 1);
  }
  pool.body = body;
  pool.context = context;
  pool.count = count;
  run_job((uint64_t)chunks);
  atomic_store_explicit(&pool.taken, false, memory_order_release);
}
