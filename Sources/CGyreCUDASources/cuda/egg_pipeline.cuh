// Pieces of weights on their way to shared memory, in the order of use, over and over for every token.
#pragma once
#include "egg_products.cuh"

#if GYRE_WGMMA
/// One more warp copies; `groups` warpgroups read and give back.
struct pipeline {
  u32 pieces, full, empty, stages, stage, phase, given;

  GYRE_DEVICE void init(u32 memory, u32 barriers, int stages_, int warps) {
    pieces = memory, full = barriers, empty = barriers + 8 * stages_, stages = stages_;
    stage = phase = given = 0;
    if (threadIdx.x == 0) {
      for (int i = 0; i < stages_; i++) {
        asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(full + 8 * i) : "memory");
        asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(empty + 8 * i), "r"(warps) : "memory");
      }
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
  }
  GYRE_DEVICE void wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n .reg .pred p;\nagain:\n mbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n @p bra done;\n"
        " bra again;\ndone:\n}" ::"r"(barrier), "r"(parity)
        : "memory");
  }
  GYRE_DEVICE void next() {
    if (++stage == stages) stage = 0, phase ^= 1;
  }
  /// The next piece, when it is there.
  GYRE_DEVICE u32 acquire() {
    wait(full + 8 * stage, phase);
    const u32 at = pieces + stage * PIECE;
    next();
    return at;
  }
  /// Gives back the oldest piece that the warp holds: products with it are done.
  GYRE_DEVICE void release() {
    if (threadIdx.x % 32 == 0)
      asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(empty + 8 * given) : "memory");
    if (++given == stages) given = 0;
  }
  /// The copying thread: queues a piece.
  GYRE_DEVICE void fetch(const s8 *from) {
    wait(empty + 8 * stage, phase ^ 1);
    const u32 barrier = full + 8 * stage;
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(PIECE) : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            pieces + stage * PIECE),
        "l"(from), "r"(PIECE), "r"(barrier)
        : "memory");
    next();
  }
};
#else
/// All threads copy, and wait for each other at every piece.
struct pipeline {
  u32 pieces, stages, stage;
  const s8 *source;
  long fetched, count, wraps;

  GYRE_DEVICE void copy() {
    if (fetched < count) {
      const u32 to = pieces + (u32)(fetched % stages) * PIECE;
      const s8 *from = source + fetched % wraps * PIECE;
      for (int i = threadIdx.x * 16; i < PIECE; i += blockDim.x * 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + i), "l"(from + i) : "memory");
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    fetched++;
  }
  GYRE_DEVICE void init(u32 memory, int stages_, const s8 *from, long wraps_, long tokens) {
    pieces = memory, stages = stages_, source = from, wraps = wraps_, count = wraps_ * tokens;
    stage = 0, fetched = 0;
    for (int i = 0; i + 1 < stages_; i++) copy();
  }
  GYRE_DEVICE u32 acquire() {
    // Pieces come in order: with two stages the newest is waited for, with more the one but newest.
    if (stages == 2) asm volatile("cp.async.wait_group 0;" ::: "memory");
    else asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncthreads();
    const u32 at = pieces + stage * PIECE;
    if (++stage == stages) stage = 0;
    copy();
    return at;
  }
  GYRE_DEVICE void release() {}
};
#endif
