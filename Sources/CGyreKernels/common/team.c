// Teams on top of ck_parallel_for. That call promises that every range runs, not that ranges run at
// the same time, so threads enlist first: the one that comes first closes the list when all ranges
// have an owner or when it has waited long enough, and who comes later has nothing to do.
#if defined(__linux__)
#define _GNU_SOURCE
#endif
#include "team.h"
#include <sched.h>
#include <time.h>

enum { ENLIST_NANOSECONDS = 300000, SPINS_BEFORE_YIELD = 4096 };

static inline void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");
#endif
}

static long nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000L + now.tv_nsec;
}

void ck_barrier_wait(ck_barrier *barrier, long *round) {
  if (barrier->members == 1) return;
  const long wanted = ++*round * barrier->members;
  if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) + 1 >= wanted) return;
  for (int spins = 0; atomic_load_explicit(&barrier->arrived, memory_order_acquire) < wanted;
       spins++) {
    relax();
    if (spins > SPINS_BEFORE_YIELD) sched_yield();
  }
}

struct team {
  void (*body)(void *, int, int, ck_barrier *);
  void *context;
  long count;
  ck_barrier barrier;
  // Ranges with an owner in the low half, owners in the high half; negative when closed.
  _Alignas(64) _Atomic int64_t list;
  _Atomic int closed_members;
};

static void enlist(void *context, long begin, long end) {
  struct team *team = context;
  int64_t list = atomic_load(&team->list);
  int64_t mine;
  do {
    if (list < 0) return;
    mine = list + (INT64_C(1) << 32) + (end - begin);
  } while (!atomic_compare_exchange_weak(&team->list, &list, mine));
  const int index = (int)(list >> 32);
  if (index == 0) {
    const long deadline = nanoseconds() + ENLIST_NANOSECONDS;
    while ((list = atomic_load(&team->list)), (list & UINT32_MAX) < team->count) {
      relax();
      if (nanoseconds() > deadline) break;
    }
    list = atomic_exchange(&team->list, -1);
    team->barrier.members = (int)(list >> 32);
    atomic_store(&team->closed_members, team->barrier.members);
  } else {
    for (int spins = 0; atomic_load(&team->closed_members) == 0; spins++) {
      relax();
      if (spins > SPINS_BEFORE_YIELD) sched_yield();
    }
  }
  team->body(team->context, index, team->barrier.members, &team->barrier);
}

void ck_parallel_team(int count, void (*body)(void *, int, int, ck_barrier *), void *context) {
  struct team team = {.body = body, .context = context, .count = count < 1 ? 1 : count};
  ck_parallel_for(team.count, 1, enlist, &team);
}
