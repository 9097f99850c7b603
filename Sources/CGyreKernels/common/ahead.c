#include "ahead.h"
#include <stdatomic.h>

enum {
  PIECE = 4096,           // bytes between two looks at the next job
  LINE = 64,
  SLOTS = 1024,           // matrices whose successor is known
  MIN_BYTES = 128 << 10,  // smaller ones stay in the shared cache
  JOB_PARTS = 4,          // ranges a thread of a job (ck_parallel_for)
};

static struct {
  _Atomic uintptr_t from, to;
  _Atomic size_t byte_count;
} successors[SLOTS];
static _Atomic uintptr_t last;

static _Alignas(64) struct {
  _Atomic uintptr_t next, end;
} region;

static size_t slot_of(uintptr_t address) {
  return (size_t)((uint64_t)address / LINE * UINT64_C(0x9E3779B97F4A7C15) >> 54) % SLOTS;
}

void ck_read_ahead_of(const void *matrix, size_t byte_count) {
  const int workers = ck_thread_count() - 1;
  if (byte_count < MIN_BYTES || workers == 0) return;
  const uintptr_t now = (uintptr_t)matrix, before = atomic_exchange(&last, now);
  const size_t old = slot_of(before), slot = slot_of(now);
  if (atomic_load_explicit(&successors[old].to, memory_order_relaxed) != now ||
      atomic_load_explicit(&successors[old].from, memory_order_relaxed) != before) {
    atomic_store_explicit(&successors[old].from, before, memory_order_relaxed);
    atomic_store_explicit(&successors[old].to, now, memory_order_relaxed);
    atomic_store_explicit(&successors[old].byte_count, byte_count, memory_order_relaxed);
  }
  if (atomic_load_explicit(&successors[slot].from, memory_order_relaxed) != now) return;
  const uintptr_t next = atomic_load_explicit(&successors[slot].to, memory_order_relaxed);
  const size_t bytes = atomic_load_explicit(&successors[slot].byte_count, memory_order_relaxed);
  // The caller takes the first range of the job. Two thirds of a cache leave room for the rest.
  const size_t first = bytes / (JOB_PARTS * (size_t)(workers + 1));
  const size_t most = (size_t)workers * (size_t)ck_near_cache_bytes() / 3 * 2;
  const size_t length = bytes - first < most ? bytes - first : most;
  atomic_store(&region.end, 0);
  atomic_store(&region.next, next + first);
  atomic_store(&region.end, next + first + length);
}

bool ck_read_ahead_piece(void) {
  const uintptr_t end = atomic_load_explicit(&region.end, memory_order_relaxed);
  if (atomic_load_explicit(&region.next, memory_order_relaxed) >= end) return false;
  const uintptr_t begin = atomic_fetch_add_explicit(&region.next, PIECE, memory_order_relaxed);
  for (uintptr_t at = begin; at < begin + PIECE && at < end; at += LINE)
    __builtin_prefetch((const void *)at, 0, 2);
  return true;
}
