// y = f(x W') of up to 256 rows, some products at once, on Hopper: weights pass once, at the rate of memory. Four blocks
// share what they read: those of the same rows bring x together, those of the same columns W, and two that have
// halves of the same sums add them up through each other's shared memory.
// Variants: COLUMNS=64,128,192,256
#include "prelude.cuh"
#include "wgmma.cuh"

#ifndef COLUMNS
#define COLUMNS 128
#endif

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr int HEIGHT = GYRE_ROW_HEIGHT, DEPTH = 64, N = COLUMNS / 8;
constexpr int X_TILE = HEIGHT * DEPTH, W_TILE = COLUMNS * DEPTH, STAGE = X_TILE + W_TILE;
constexpr int STAGES = GYRE_ROW_STAGES(COLUMNS), READERS = 8, READING = READERS * 32;

/// One thread: a box of 64 channels and 64 or more rows for the blocks of a cluster that `mask` has.
DEV void load_rows_for(u16 *to, const gyre_tensor_map &map, int channel, int row, u64 *b, int mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(b)), "r"(channel), "r"(row), "h"((u16)mask)
      : "memory");
}
DEV void store_to_block(float *at, u32 rank, float x, float y) {
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
      "st.shared::cluster.v2.f32 [there], {%2, %3};\n}" ::"r"(shared_address(at)),
      "r"(rank), "f"(x), "f"(y)
      : "memory");
}

/// A block's share.
struct Share {
  const gyre_row_product *of;
  int columns, splits, row, column, split, tile;
  DEV_MEMBER Share(const gyre_row_products_args &a) : columns(a.columns), splits(a.splits) {
    const int rank = cluster_rank(), cluster = blockIdx.x / GYRE_ROW_CLUSTER;
    row = rank & 1, column = (rank >> 1) & (columns - 1), split = (rank >> 1) & (splits - 1);
    int i = 0;
    while (i + 1 < a.count && cluster >= a.of[i + 1].first) i++;
    of = a.of + i;
    tile = (cluster - of->first) * columns + column;
  }
  DEV_MEMBER bool gated() const { return of->function == GYRE_ROW_GATED; }
  DEV_MEMBER int begin() const { return of->steps * split / splits; }
  DEV_MEMBER int end() const { return of->steps * (split + 1) / splits; }
};

struct Shared {
  u16 *tiles;
  u64 *full, *empty;
  DEV_MEMBER Shared(unsigned char *raw) {
    tiles = (u16 *)(raw + ((1024 - (shared_address(raw) & 1023)) & 1023));
    full = (u64 *)(tiles + STAGES * STAGE), empty = full + STAGES;
  }
};

/// One thread: orders tiles ahead of those who read them, the first weights before what x is known to be there.
DEV void copy_tiles(const Share &w, const Shared &s) {
  constexpr int HALF = COLUMNS / 2;
  const int first = w.begin(), count = w.end() - first, ahead = min(count, STAGES), rank = (int)cluster_rank();
  // Of W every block brings half a tile for both parts of the rows, of x its rows or half of them for both columns.
  const int rows = w.columns == 2 ? 5 << w.row : 1 << rank, pair = 3 << (rank & 2);
  const int from = w.gated() ? w.tile * HALF + w.row * w.of->outputs : w.tile * COLUMNS + w.row * HALF;
  auto weights = [&](int step, int stage) {
    load_rows_for(
        s.tiles + stage * STAGE + X_TILE + w.row * HALF * DEPTH, w.of->w, (first + step) * DEPTH, from,
        s.full + stage, pair);
  };
  auto inputs = [&](int step, int stage) {
    u16 *const to = s.tiles + stage * STAGE;
    const int channel = (first + step) * DEPTH, row = w.row * HEIGHT;
    const int box = w.columns == 2 ? w.column * 64 : 0;
    load_rows_for(to + box * DEPTH, w.of->x, channel, row + box, s.full + stage, rows);
    if (w.columns == 1) load_rows_for(to + 64 * DEPTH, w.of->x, channel, row + 64, s.full + stage, rows);
  };
  asm volatile("prefetch.tensormap [%0];" ::"l"(&w.of->x) : "memory");
  for (int i = 0; i < ahead; i++) {
    barrier_expect(s.full + i, STAGE * 2);
    weights(i, i);
  }
  wait_for_before();
  for (int i = 0; i < ahead; i++) inputs(i, i);
  Ring ring;
#pragma unroll 1
  for (int i = ahead; i < count; i++) {
    barrier_wait(s.empty + ring.stage, ring.parity);
    barrier_expect(s.full + ring.stage, STAGE * 2);
    weights(i, ring.stage);
    inputs(i, ring.stage);
    ring.advance<STAGES>();
  }
}

DEV float function_of(int function, float x) {
  if (function == GYRE_ROW_PLAIN) return x;
  if (function == GYRE_ROW_RELU_SQUARED) return x > 0.f ? x * x : 0.f;
  const float s = quick_sigmoid(function == GYRE_ROW_TANH ? x + x : x);
  return function == GYRE_ROW_TANH ? s + s - 1.f : s;
}

DEV void four_at(const float *from, float *to) {
  const float4 a = ((const float4 *)from)[0], b = ((const float4 *)from)[1];
  to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}

/// Rows of sums lie 8 floats further apart than they are long, so that a warp's stores meet in no bank.
DEV int pitch(int columns) { return columns + 8; }

/// A warp writes its 16 rows, eight outputs a lane: little code, for none of it was there before. `more`: where
/// present, the other half of the sums.
DEV void write(const Share &w, int rows, const float *sums, const float *more, int from, int width) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, function = w.of->function;
  const int outputs = w.of->outputs, each = (w.gated() ? width / 2 : width) / 8;
  const int column = w.tile * (w.gated() ? COLUMNS / 2 : COLUMNS) + from;
#pragma unroll 1
  for (int i = lane; i < 16 * each; i += 32) {
    const int r = i / each, c = (i - r * each) * 8, row = w.row * HEIGHT + warp * 16 + r, to = column + c;
    const int place = (warp * 16 + r) * pitch(width) + c;
    if (row >= rows || to >= outputs) continue;
    float x[8], y[8];
    four_at(sums + place, x);
    if (more) {
      four_at(more + place, y);
#pragma unroll
      for (int j = 0; j < 8; j++) x[j] += y[j];
    }
    if (w.gated()) {
      four_at(sums + place + width / 2, y);
#pragma unroll
      for (int j = 0; j < 8; j++) x[j] *= quick_sigmoid(x[j]) * y[j];
    } else if (function != GYRE_ROW_PLAIN) {
#pragma unroll
      for (int j = 0; j < 8; j++) x[j] = function_of(function, x[j]);
    }
    const long at = (long)row * outputs + to;
    if (w.of->is_float) {
      float4 *const p = (float4 *)((float *)w.of->y + at);
      p[0] = make_float4(x[0], x[1], x[2], x[3]), p[1] = make_float4(x[4], x[5], x[6], x[7]);
    } else {
      *(uint4 *)((u16 *)w.of->y + at) =
          make_uint4(pack2(x[0], x[1]), pack2(x[2], x[3]), pack2(x[4], x[5]), pack2(x[6], x[7]));
    }
  }
}

/// Two groups of four warps, 64 rows each.
DEV void multiply(const Share &w, const Shared &s, int rows) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, group = threadIdx.x >> 7, rank = (int)cluster_rank();
  const u64 x = panel_operand(s.tiles + group * 64 * DEPTH), y = panel_operand(s.tiles + X_TILE);
  // Who brings what this block reads: itself, its partner in rows, where columns share x the one in columns.
  const u32 reader = lane == 0 ? rank : lane == 1 ? rank ^ 1 : rank ^ 2;
  auto release = [&](int stage) {
    if (lane <= w.columns) barrier_arrive_at(s.empty + stage, reader);
  };
  const int count = w.end() - w.begin();
  Ring ring;
  float d[N][4];
  int before = 0;
#pragma unroll 1
  for (int i = 0; i < count; i++) {
    barrier_wait(s.full + ring.stage, ring.parity);
    const u64 at_stage = (u64)(ring.stage * (STAGE * 2 >> 4));
    pin(d);
    wgmma_fence();
#pragma unroll
    for (int q = 0; q < DEPTH / 16; q++)
      wgmma<0>(d, x + at_stage + 2 * q, y + at_stage + 2 * q, i > 0 || q > 0);
    wgmma_commit();
    if (i > 0) {
      wgmma_wait<1>();
      release(before);
    }
    before = ring.stage;
    ring.advance<STAGES>();
  }
  wgmma_wait<0>();
  pin(d);
  __syncwarp();
  if (count == 0) {
#pragma unroll
    for (int n = 0; n < N; n++) d[n][0] = d[n][1] = d[n][2] = d[n][3] = 0.f;
  }
  // The tiles' memory takes the sums once all are through with it.
  float *const sums = (float *)s.tiles;
  const int row = warp * 16 + (lane >> 2), t = lane & 3;
  if (w.splits == 1) {
    asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
    asm volatile("bar.sync 1, %0;" ::"n"(READING) : "memory");
    float *const mine = sums + row * pitch(COLUMNS) + t * 2;
#pragma unroll
    for (int n = 0; n < N; n++) {
      *(float2 *)(mine + n * 8) = make_float2(d[n][0], d[n][1]);
      *(float2 *)(mine + 8 * pitch(COLUMNS) + n * 8) = make_float2(d[n][2], d[n][3]);
    }
    __syncwarp();
    write(w, rows, sums, nullptr, 0, COLUMNS);
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
    return;
  }
  // A block keeps the columns of its split and gives the others away, to behind those that are there.
  constexpr int HALF = COLUMNS / 2;
  float *const given = sums + HEIGHT * pitch(HALF), *const mine = sums + row * pitch(HALF) + t * 2;
  const u32 other = rank ^ 2;
  cluster_wait();
#pragma unroll
  for (int n = 0; n < N; n++) {
    float *const to = mine + n % (N / 2) * 8;
    if (n / (N / 2) == w.split) {
      *(float2 *)to = make_float2(d[n][0], d[n][1]);
      *(float2 *)(to + 8 * pitch(HALF)) = make_float2(d[n][2], d[n][3]);
    } else {
      store_to_block(to + HEIGHT * pitch(HALF), other, d[n][0], d[n][1]);
      store_to_block(to + (HEIGHT + 8) * pitch(HALF), other, d[n][2], d[n][3]);
    }
  }
  cluster_wait();
  write(w, rows, sums, given, w.split * HALF, HALF);
}

extern "C" __global__ void __cluster_dims__(GYRE_ROW_CLUSTER, 1, 1) __launch_bounds__(GYRE_ROW_THREADS, 1)
    row_products(const __grid_constant__ gyre_row_products_args a) {
  SHARED(raw);
  const Shared s(raw);
  const Share w(a);
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(s.full + i, 1);
      barrier_init(s.empty + i, (w.columns + 1) * READERS);
    }
    barrier_fence();
  }
  cluster_wait();
  let_next_begin();
  if (threadIdx.x >= READING) {
    fewer_registers<40>();
    if (threadIdx.x == READING) copy_tiles(w, s);
    __syncwarp();
    cluster_wait();
    if (w.splits > 1) cluster_wait();
  } else {
    more_registers<232>();
    multiply(w, s, a.rows);
  }
}

#endif
