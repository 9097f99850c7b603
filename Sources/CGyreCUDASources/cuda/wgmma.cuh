// Products of four warps at once (wgmma), tiles brought by the copy engine, and barriers between those
// who fill tiles and those who read them: Hopper's own instructions, sm_90a only.
//
// A tile in shared memory is a row of panels, each of 64 columns of bf16: rows of 128 bytes whose
// 16-byte pieces are exchanged as `at<64>` does, from a multiple of 1,024 bytes on. That is what a
// tensor map with 128-byte swizzle writes and what wgmma reads.
#pragma once
#include "checked.cuh"
#include "gyre_cuda_args.h"
#include "mma.cuh"

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

enum { PANEL = 4096 };  // elements of 64 rows

/// A panel as an operand; `next` is the distance in bytes to the panel of the next 64 columns, where
/// columns are the operand's outer side.
DEV u64 panel_operand(const u16 *panel, u32 next = 16) {
  return (u64)((shared_address(panel) & 0x3ffff) >> 4) | (u64)(next >> 4) << 16 |
         (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

/// From an operand to its step i of 16 columns, in panels of `rows` rows.
DEV u32 panel_step(int i, int rows = 64) {
  return (i / 4 * rows * 128 >> 4) + i % 4 * 2;
}
/// From an operand that lies as [depth][column] to its step i of 16 rows.
DEV u32 turned_step(int i) {
  return i * (16 * 128 >> 4);
}

#define GYRE_OUT4(d, n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define GYRE_OUT32(d, n)                                                                          \
  GYRE_OUT4(d, n), GYRE_OUT4(d, n + 1), GYRE_OUT4(d, n + 2), GYRE_OUT4(d, n + 3), GYRE_OUT4(d, n + 4), \
      GYRE_OUT4(d, n + 5), GYRE_OUT4(d, n + 6), GYRE_OUT4(d, n + 7)
#define GYRE_R32                                                                                 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25," \
  "%26,%27,%28,%29,%30,%31"
#define GYRE_R64                                                                                   \
  GYRE_R32                                                                                         \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55," \
  "%56,%57,%58,%59,%60,%61,%62,%63"

// d (+)= a b for 64 rows and 64 or 128 columns, 16 deep; `add` 0 forgets what d held. With TURNED b
// lies as [depth][column], else as [column][depth].
template <int TURNED>
DEV void wgmma(float (&d)[8][4], u64 a, u64 b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" GYRE_R32
      "}, %32, %33, p, 1, 1, 0, %35;\n}"
      : GYRE_OUT32(d, 0)
      : "l"(a), "l"(b), "r"(add), "n"(TURNED));
}
template <int TURNED>
DEV void wgmma(float (&d)[8][4], const u32 (&a)[4], u64 b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" GYRE_R32
      "}, {%32,%33,%34,%35}, %36, p, 1, 1, %38;\n}"
      : GYRE_OUT32(d, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TURNED));
}
template <int TURNED>
DEV void wgmma(float (&d)[16][4], u64 a, u64 b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" GYRE_R64
      "}, %64, %65, p, 1, 1, 0, %67;\n}"
      : GYRE_OUT32(d, 0), GYRE_OUT32(d, 8)
      : "l"(a), "l"(b), "r"(add), "n"(TURNED));
}
template <int TURNED>
DEV void wgmma(float (&d)[16][4], const u32 (&a)[4], u64 b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" GYRE_R64
      "}, {%64,%65,%66,%67}, %68, p, 1, 1, %70;\n}"
      : GYRE_OUT32(d, 0), GYRE_OUT32(d, 8)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TURNED));
}
#define GYRE_R128                                                                                   \
  GYRE_R64                                                                                          \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87," \
  "%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109," \
  "%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define GYRE_R96                                                                                   \
  GYRE_R64                                                                                         \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87," \
  "%88,%89,%90,%91,%92,%93,%94,%95"
// The same for 192 columns.
template <int TURNED>
DEV void wgmma(float (&d)[24][4], u64 a, u64 b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 {" GYRE_R96
      "}, %96, %97, p, 1, 1, 0, %99;\n}"
      : GYRE_OUT32(d, 0), GYRE_OUT32(d, 8), GYRE_OUT32(d, 16)
      : "l"(a), "l"(b), "r"(add), "n"(TURNED));
}
// The same for 256 columns.
template <int TURNED>
DEV void wgmma(float (&d)[32][4], u64 a, u64 b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" GYRE_R128
      "}, %128, %129, p, 1, 1, 0, %131;\n}"
      : GYRE_OUT32(d, 0), GYRE_OUT32(d, 8), GYRE_OUT32(d, 16), GYRE_OUT32(d, 24)
      : "l"(a), "l"(b), "r"(add), "n"(TURNED));
}
// The same for 8 columns.
template <int TURNED>
DEV void wgmma(float (&d)[1][4], u64 a, u64 b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, %4, %5, p, 1, 1, 0, %7;\n}"
      : GYRE_OUT4(d, 0)
      : "l"(a), "l"(b), "r"(add), "n"(TURNED));
}
template <int TURNED>
DEV void wgmma(float (&d)[1][4], const u32 (&a)[4], u64 b, int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %9, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, p, 1, 1, "
      "%10;\n}"
      : GYRE_OUT4(d, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TURNED));
}
DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Until at most N of the groups that were committed are under way.
template <int N>
DEV void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
/// Keeps the compiler from moving uses of accumulators over a fence or a wait.
template <int N>
DEV void pin(float (&d)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; n++) asm volatile("" : GYRE_OUT4(d, n)::"memory");
}
/// Keeps registers that a product reads from being used for anything else before here.
template <int N>
DEV void hold(u32 (&p)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; n++)
    asm volatile("" : "+r"(p[n][0]), "+r"(p[n][1]), "+r"(p[n][2]), "+r"(p[n][3])::"memory");
}

DEV void barrier_init(u64 *b, u32 count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count) : "memory");
}
DEV void barrier_arrive(u64 *b) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
enum { WARP = ARRIVALS(32) };
/// One warp is done with what a barrier guards: WARP arrivals.
DEV void arrive_as_warp(u64 *b) {
  __syncwarp();
  if (arrives((threadIdx.x & 31) == 0)) barrier_arrive(b);
}
/// One thread: the barrier also waits for `bytes` that the copy engine brings.
DEV void barrier_expect(u64 *b, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(b)),
               "r"(bytes)
               : "memory");
}
/// One thread: one box of a tensor [.., .., .., channels] into a panel; zeros beyond its ends.
DEV void load_box(
    u16 *panel, const gyre_tensor_map &map, int channel, int head, int row, int batch, u64 *b) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, "
      "{%3, %4, %5, %6}], [%2];" ::"r"(shared_address(panel)),
      "l"(&map), "r"(shared_address(b)), "r"(channel), "r"(head), "r"(row), "r"(batch)
      : "memory");
}
/// One thread: a panel into the box that `load_box` would read; nothing beyond the tensor's ends.
DEV void store_box(const gyre_tensor_map &map, const u16 *panel, int channel, int head, int row, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
      "r"(shared_address(panel)), "r"(channel), "r"(head), "r"(row), "r"(batch)
      : "memory");
}
/// The thread that asked for stores: until they have read shared memory.
DEV void finish_stores() {
  asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;" ::: "memory");
}
/// One thread: a box of 64 channels and 64 rows, from row 32 `group` on, of a matrix whose map turns rows 8 t + 2 j + e of
/// every 32 into 8 j + 2 t + e; for a cluster of two blocks of threads, into both and counted by the barriers of both.
DEV void load_turned_box_for_both(u16 *panel, const gyre_tensor_map &map, int channel, int group, u64 *b) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4, %4, %4, %5}], [%2], %6;" ::"r"(shared_address(panel)),
      "l"(&map), "r"(shared_address(b)), "r"(channel), "r"(0), "r"(group), "h"((u16)3)
      : "memory");
}
/// The four warps of one group.
DEV void group_wait(int group) { asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); }
/// This block's place in its cluster.
DEV u32 cluster_rank() {
  u32 r;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
/// All threads of the cluster.
DEV void cluster_wait() {
  asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;" ::: "memory");
}
/// The barrier at the same place in another block of the cluster.
DEV void barrier_arrive_at(u64 *b, u32 rank) {
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address(b)),
      "r"(rank)
      : "memory");
}
/// One thread: bytes of global memory on their way to the second-level cache, in multiples of 16.
DEV void prefetch_bytes(const void *from, u32 bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}
/// Four 8x8 matrices, from where ldsm4 reads them.
DEV void stsm4(u16 *p, const u32 (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(p)),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
/// One thread: contiguous bytes, counted by a barrier that expects them.
DEV void load_bytes(void *to, const void *from, u32 bytes, u64 *b) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(b))
      : "memory");
}
/// Four 8x8 matrices, each turned, from where ldsm4t reads them.
DEV void stsm4t(u16 *p, const u32 (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(p)),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
template <int R>
DEV void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(R));
}
template <int R>
DEV void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(R));
}

/// A place in a ring of tiles and how often it was passed.
struct Ring {
  int stage = 0;
  u32 parity = 0;
  template <int STAGES>
  DEV_MEMBER void advance() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

#endif
