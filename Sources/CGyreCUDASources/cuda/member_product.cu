// y = x Wᵀ + s scale (x . B) A for 16 k rows a member, on Hopper: tiles come by the copy engine, x . B is
// formed of what passes, and the noise is added before y is written, so that it costs no pass over memory. bfloat16, rank 1; two blocks of threads share the tiles of W.
// Variants: COLUMNS=64,128,256
#include "evolution_numbers.cuh"
#include "wgmma.cuh"

#ifndef COLUMNS
#define COLUMNS 256
#endif

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr int HEIGHT = GYRE_PRODUCT_ROWS, DEPTH = 64;
constexpr int X_TILE = HEIGHT * DEPTH, W_TILE = COLUMNS * DEPTH, STAGE = X_TILE + W_TILE;
constexpr int STAGES = GYRE_PRODUCT_STAGES(COLUMNS), BLOCKS = 2, READERS = 8, NUMBERS = 8 * DEPTH;

/// The tiles of a pair of blocks: units of the same rows and some tiles of columns.
struct Walk {
  const gyre_member_product_args &a;
  int unit, rows, tile, begin, end;
  DEV_MEMBER Walk(const gyre_member_product_args &a) : a(a), unit(blockIdx.x / BLOCKS) { enter(); }
  DEV_MEMBER void enter() {
    const int part = unit % a.parts;
    rows = (unit / a.parts * BLOCKS + (int)cluster_rank()) * HEIGHT;
    tile = begin = a.tiles * part / a.parts;
    end = a.tiles * (part + 1) / a.parts;
  }
  DEV_MEMBER bool ended() const { return unit >= a.units; }
  DEV_MEMBER bool is_first() const { return tile == begin; }
  DEV_MEMBER int columns() const { return tile * COLUMNS; }
  DEV_MEMBER void next() {
    if (++tile < end) return;
    unit += gridDim.x / BLOCKS;
    enter();
  }
};

struct Shared {
  u16 *tiles;              // x and W, by stage
  u16 *down;               // numbers of B: [group][2 pairs of steps][2][8][64], two rows a warp's member
  float (*up)[COLUMNS];    // numbers of A, by reading warp
  u64 *full, *empty;
  DEV_MEMBER Shared(unsigned char *raw) {
    tiles = (u16 *)(raw + ((1024 - (shared_address(raw) & 1023)) & 1023));
    down = tiles + STAGES * STAGE;
    up = (float(*)[COLUMNS])(down + 8 * NUMBERS);
    full = (u64 *)(up + READERS), empty = full + STAGES;
  }
};

/// One thread: orders tiles ahead of those who read them.
DEV void copy_tiles(const gyre_member_product_args &a, const Shared &s) {
  Ring ring;
  for (Walk walk(a); !walk.ended(); walk.next()) {
    for (int k = 0; k < a.inputs; k += DEPTH) {
      u64 *const full = s.full + ring.stage;
      u16 *const x = s.tiles + ring.stage * STAGE, *const w = x + X_TILE;
      barrier_wait(s.empty + ring.stage, ring.parity ^ 1);
      barrier_expect(full, STAGE * 2);
#pragma unroll
      for (int p = 0; p < HEIGHT / 64; p++) load_box(x + p * PANEL, a.x, k, 0, walk.rows + p * 64, 0, full);
#pragma unroll
      for (int p = 0; p < COLUMNS / 64; p++)
        if (p % BLOCKS == (int)cluster_rank())
          load_turned_box_for_both(w + p * PANEL, a.w, k, walk.columns() / 32 + p * 2, full);
      ring.advance<STAGES>();
    }
  }
}

DEV int member_of(const gyre_member_product_args &a, long row) {
  return a.members[min(row, a.rows - 1) / a.each];
}

/// Four numbers as two bfloat16 each, whose sums they are.
DEV void store_split(u16 *high, u16 *low, const float (&n)[4]) {
  const u32 a = pack2(n[0], n[1]), b = pack2(n[2], n[3]);
  *(uint2 *)high = make_uint2(a, b);
  *(uint2 *)low = make_uint2(
      pack2(n[0] - low_of(a), n[1] - high_of(a)), pack2(n[2] - low_of(b), n[3] - high_of(b)));
}

/// A warp's numbers 4 i to 4 i + 3 of a member.
DEV void keep(const Numbers &of, unsigned first, int i, float *to) {
  float four[4];
  of.four((first >> 2) + i, four);
  *(float4 *)(to + i * 4) = make_float4(four[0], four[1], four[2], four[3]);
}

/// Two groups of four warps, 64 rows each. x . B of a warp's 16 rows is two more columns of a product. While
/// products run, numbers are made for those to come and for the end.
DEV void multiply(const gyre_member_product_args &a, const Shared &s) {
  constexpr int N = COLUMNS / 8;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, group = threadIdx.x >> 7, t = lane & 3;
  const u64 x = panel_operand(s.tiles + group * PANEL), w = panel_operand(s.tiles + X_TILE);
  float *const up = s.up[warp];
  u16 *const down = s.down + group * 4 * NUMBERS;
  auto release = [&](int stage) {
    if (lane < BLOCKS) barrier_arrive_at(s.empty + stage, lane);
  };
  Ring ring;
  float z0 = 0.f, z1 = 0.f;
  for (Walk walk(a); !walk.ended(); walk.next()) {
    const int member = member_of(a, walk.rows + warp * 16);
    const Numbers of(a.noise, a.noise.leaf, member);
    const bool sums = walk.is_first();
    float d[N][4], z[1][4], four[4];
    int before = 0;
    // B of the warp's member for the pair of steps from k on, a lane four of its 128 numbers.
    auto make = [&](int k) { of.four(((a.noise.down_first + k) >> 2) + lane, four); };
    auto keep_pair = [&](int k) {
      u16 *const to = down + (k / DEPTH & 2) * NUMBERS + lane / 16 * NUMBERS;
      group_wait(group);
      store_split(
          to + at<64>(2 * (warp & 3), lane % 16 * 4), to + at<64>(2 * (warp & 3) + 1, lane % 16 * 4), four);
      proxy_fence();
      group_wait(group);
    };
    if (sums) make(0), keep_pair(0);
    for (int k = 0; k < a.inputs; k += DEPTH) {
      barrier_wait(s.full + ring.stage, ring.parity);
      const u64 at_stage = (u64)(ring.stage * (STAGE * 2 >> 4));
      pin(d);
      wgmma_fence();
#pragma unroll
      for (int q = 0; q < DEPTH / 16; q++)
        wgmma<0>(d, x + at_stage + 2 * q, w + at_stage + 2 * q, k > 0 || q > 0);
      if (sums) {
        const u64 numbers = panel_operand(down + (k / DEPTH & 3) * NUMBERS);
        pin(z);
#pragma unroll
        for (int q = 0; q < DEPTH / 16; q++) wgmma<0>(z, x + at_stage + 2 * q, numbers + 2 * q, k > 0 || q > 0);
      }
      wgmma_commit();
      if (sums && !(k / DEPTH & 1)) make(k + 2 * DEPTH);
      if (k == 0) {
        __syncwarp();
        for (int i = lane; i < COLUMNS / 4; i += 32) keep(of, a.noise.up_first + walk.columns(), i, up);
      } else {
        wgmma_wait<1>();
        release(before);
        if (sums && (k / DEPTH & 1)) keep_pair(k + DEPTH);
      }
      before = ring.stage;
      ring.advance<STAGES>();
    }
    __syncwarp();
    wgmma_wait<0>();
    pin(d);
    release(before);
    if (sums) {
      // Columns 2 w and 2 w + 1 are the parts of warp w's member.
      pin(z);
      const float scale = a.noise.down * a.noise.up, sign = member < 0 ? 0.f : member & 1 ? -scale : scale;
      const int from = (lane & ~3) | (warp & 3);
      z0 = __shfl_sync(~0u, z[0][0] + z[0][1], from) * sign;
      z1 = __shfl_sync(~0u, z[0][2] + z[0][3], from) * sign;
    }
    const long row = walk.rows + warp * 16 + (lane >> 2);
    u16 *const to = (u16 *)a.y + row * a.outputs + walk.columns() + t * 8;
    // Of every 32 outputs a lane has eight neighbours: W came so that they are in this order.
#pragma unroll
    for (int n = 0; n < N; n += 4) {
      const float *const numbers = up + n * 8 + t * 8;
      u32 upper[4], lower[4];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float2 p = *(const float2 *)(numbers + 2 * j);
        upper[j] = pack2(d[n + j][0] + z0 * p.x, d[n + j][1] + z0 * p.y);
        lower[j] = pack2(d[n + j][2] + z1 * p.x, d[n + j][3] + z1 * p.y);
      }
      if (walk.columns() + n * 8 < a.outputs) {
        if (row < a.rows) *(uint4 *)(to + n * 8) = make_uint4(upper[0], upper[1], upper[2], upper[3]);
        if (row + 8 < a.rows)
          *(uint4 *)(to + 8 * a.outputs + n * 8) = make_uint4(lower[0], lower[1], lower[2], lower[3]);
      }
    }
  }
}

// Blocks in pairs, as many as the device holds; two groups multiply, one thread of the third copies.
extern "C" __global__ void __cluster_dims__(BLOCKS, 1, 1) __launch_bounds__(GYRE_PRODUCT_THREADS, 1)
    member_product(const __grid_constant__ gyre_member_product_args a) {
  SHARED(raw);
  const Shared s(raw);
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(s.full + i, 1);
      barrier_init(s.empty + i, BLOCKS * READERS);
    }
    barrier_fence();
  }
  cluster_wait();
  if (threadIdx.x >= GYRE_PRODUCT_THREADS - 128) {
    fewer_registers<40>();
    if (threadIdx.x == GYRE_PRODUCT_THREADS - 128) copy_tiles(a, s);
  } else {
    more_registers<232>();
    multiply(a, s);
  }
  // Neither ends while the other may still write to it.
  cluster_wait();
}

#endif
