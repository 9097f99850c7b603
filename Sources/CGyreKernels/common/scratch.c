// Scratch memory: one stack of blocks a thread, kept between kernels so that the steady state
// allocates nothing. When the stack empties, several blocks become one of their total size.
#if defined(__linux__)
#define _GNU_SOURCE
#endif
#include "ck_common.h"
#include <pthread.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

enum { ALIGNMENT = 64, FIRST_BLOCK = 1 << 20, HUGE_PAGE = 2 << 20 };

struct block {
  struct block *below;
  size_t capacity;  // bytes after the header
  size_t used;      // kept while the block is not the top
};
enum { HEADER = (sizeof(struct block) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT };

struct arena {
  struct block *top;
  size_t offset;       // bytes in use in the top block
  size_t block_bytes;  // capacity the next first block gets
  long depth;          // marks that have not ended
};

static pthread_key_t arena_key;
static pthread_once_t arena_once = PTHREAD_ONCE_INIT;
static _Thread_local struct arena *arena;

static void free_blocks(struct block *block) {
  while (block) {
    struct block *below = block->below;
    free(block);
    block = below;
  }
}

static void destroy_arena(void *pointer) {
  struct arena *dying = pointer;
  free_blocks(dying->top);
  free(dying);
  arena = NULL;
}

static void make_key(void) {
  if (pthread_key_create(&arena_key, destroy_arena)) abort();
}

static struct arena *this_arena(void) {
  if (arena) return arena;
  pthread_once(&arena_once, make_key);
  arena = calloc(1, sizeof *arena);
  if (!arena || pthread_setspecific(arena_key, arena)) abort();
  arena->block_bytes = FIRST_BLOCK;
  return arena;
}

static void push_block(struct arena *a, size_t byte_count) {
  size_t capacity = a->top ? 2 * a->top->capacity : a->block_bytes;
  if (capacity < byte_count) capacity = byte_count;
  size_t total = HEADER + capacity, alignment = ALIGNMENT;
  if (total >= HUGE_PAGE) alignment = HUGE_PAGE;
  total = (total + alignment - 1) / alignment * alignment;
  struct block *block = aligned_alloc(alignment, total);
  if (!block) abort();
#if defined(__linux__)
  // Packed panels are walked at large strides: 4 KB pages would thrash the TLB.
  if (alignment == HUGE_PAGE) madvise(block, total, MADV_HUGEPAGE);
#endif
  block->below = a->top;
  block->capacity = total - HEADER;
  if (a->top) a->top->used = a->offset;
  a->top = block;
  a->offset = 0;
}

ck_scratch_mark ck_scratch_begin(void) {
  struct arena *a = this_arena();
  a->depth++;
  return (ck_scratch_mark){.offset = a->offset, .block = a->top};
}

void *ck_scratch(size_t byte_count) {
  struct arena *a = this_arena();
  byte_count = (byte_count + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  if (!a->top || a->top->capacity - a->offset < byte_count) push_block(a, byte_count);
  void *result = (char *)a->top + HEADER + a->offset;
  a->offset += byte_count;
  return result;
}

void ck_scratch_end(ck_scratch_mark mark) {
  struct arena *a = this_arena();
  a->depth--;
  if (mark.block == NULL) {
    size_t total = 0;
    for (struct block *block = a->top; block; block = block->below) total += block->capacity;
    a->offset = 0;
    if (!a->top || !a->top->below) return;
    free_blocks(a->top);
    a->top = NULL;
    a->block_bytes = total;
    return;
  }
  while (a->top != mark.block) {
    struct block *below = a->top->below;
    const size_t released = a->top->capacity;
    free(a->top);
    a->top = below;
    if (a->block_bytes < released + below->capacity) a->block_bytes = released + below->capacity;
  }
  a->offset = mark.offset;
  // An outer mark may be at the first block's start too: the block is replaced when no mark is left.
  if (a->depth == 0 && a->block_bytes > a->top->capacity) {
    free(a->top);
    a->top = NULL;
  }
}
