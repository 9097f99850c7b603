// A team: threads of the pool that run one body at the same time and can wait for each other.
#pragma once
#include "ck_common.h"
#include <stdatomic.h>

typedef struct {
  _Alignas(64) _Atomic long arrived;  // arrivals since the start, all steps together
  int members;
} ck_barrier;

/// Waits until every member has arrived as often as the caller, whose own arrivals are counted in
/// `*round` (0 at the start). What members wrote before arriving is visible after it.
void ck_barrier_wait(ck_barrier *barrier, long *round);

/// Calls `body` on 1...count threads at once, each with its `index` in [0, members). How many join
/// is known only when the body runs: one where the pool is busy, or the call is nested. Work must be
/// split by `index` and `members` such that results do not depend on the split.
void ck_parallel_team(int count,
                      void (*body)(void *context, int index, int members, ck_barrier *barrier),
                      void *context);
