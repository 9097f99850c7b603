// Embedding and cross-entropy.
#include "prelude.cuh"

// One block a token, whole rows at a time.
GYRE_KERNEL embedding(gyre_embedding_args a) {
  bool wide = a.width % 8 == 0 && is_wide(a.table) && is_wide(a.out);
  for (long t = blockIdx.x; t < a.count; t += gridDim.x) {
    long from = (long)a.tokens[t] * a.width, to = t * a.width;
    if (wide) {
      for (long c = threadIdx.x * 8; c < a.width; c += blockDim.x * 8) {
        float x[8];
        load8(a.table, from + c, x);
        store8(a.out, to + c, x);
      }
    } else {
      for (long c = threadIdx.x; c < a.width; c += blockDim.x)
        store(a.out, to + c, load(a.table, from + c));
    }
  }
}

// The gradient of some rows of the table (blockIdx.x) in 128 of the channels (blockIdx.y): 32 lanes
// of four channels, eight groups that take every eighth of the tokens found. The tokens are looked
// through in segments; those that belong to the rows are listed in order, so that sums have one
// order. Where `adds`, added to what the rows are. Block of 256.
#define SEGMENT 2048
GYRE_KERNEL embedding_backward(gyre_embedding_args a) {
  __shared__ int found[SEGMENT];  // position in the segment
  __shared__ int row_of[SEGMENT];
  __shared__ int counts[8];
  __shared__ float sums[8][128];
  long first_row = (long)blockIdx.x * a.rows_per_block;
  int rows = a.vocabulary - first_row < a.rows_per_block ? (int)(a.vocabulary - first_row)
                                                         : a.rows_per_block;
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  long channel = (long)blockIdx.y * 128 + lane * 4;
  for (int r = 0; r < rows && !a.adds; r++)
    for (int c = threadIdx.x; c < 128; c += 256)
      if ((long)blockIdx.y * 128 + c < a.width)
        store(a.dtable, (first_row + r) * a.width + (long)blockIdx.y * 128 + c, 0.f);
  for (long start = 0; start < a.count; start += SEGMENT) {
    // Each warp looks through an eighth of the segment; the list keeps the order of the tokens.
    int here = a.count - start < SEGMENT ? (int)(a.count - start) : SEGMENT;
    int total = 0;
    for (int pass = 0; pass < 2; pass++) {
      int count = 0;
      if (pass == 1)
        for (int w = 0; w < warp; w++) count += counts[w];
      for (int i = 0; i < SEGMENT / 8; i += 32) {
        int at = warp * (SEGMENT / 8) + i + lane;
        long row = at < here ? (long)a.tokens[start + at] - first_row : -1;
        bool mine = row >= 0 && row < rows;
        unsigned votes = __ballot_sync(~0u, mine);
        if (pass == 1 && mine) {
          int place = count + __popc(votes & ((1u << lane) - 1));
          found[place] = at;
          row_of[place] = (int)row;
        }
        count += __popc(votes);
      }
      if (pass == 0 && lane == 0) counts[warp] = count;
      __syncthreads();
      if (pass == 0) total = 0;
      if (pass == 1)
        for (int w = 0; w < 8; w++) total += counts[w];
    }
    for (int r = 0; r < rows && total > 0; r++) {
      float sum[4] = {0.f, 0.f, 0.f, 0.f};
      bool any = false;
      int turn = 0;
      for (int i = 0; i < total; i++) {
        if (row_of[i] != r) continue;
        any = true;
        if ((turn++ & 7) != warp) continue;
        long from = (start + found[i]) * a.width + channel;
#pragma unroll
        for (int j = 0; j < 4; j++)
          if (channel + j < a.width) sum[j] += load(a.dout, from + j);
      }
      if (!any) continue;  // the same for the whole block
#pragma unroll
      for (int j = 0; j < 4; j++) sums[warp][lane * 4 + j] = sum[j];
      __syncthreads();
      if (threadIdx.x < 128 && (long)blockIdx.y * 128 + threadIdx.x < a.width) {
        float all = 0.f;
        for (int w = 0; w < 8; w++) all += sums[w][threadIdx.x];
        long to = (first_row + r) * a.width + (long)blockIdx.y * 128 + threadIdx.x;
        store(a.dtable, to, load(a.dtable, to) + all);
      }
      __syncthreads();
    }
    __syncthreads();
  }
}

// One block.
GYRE_KERNEL count_targets(gyre_count_args a) {
  __shared__ float shared[32];
  float count = 0.f;
  for (long i = threadIdx.x; i < a.count; i += blockDim.x) count += a.targets[i] >= 0;
  count = block_sum(count, shared);
  if (threadIdx.x == 0) a.out[0] = fmaxf(count, 1.f);
}

// One block a row: one pass for maximum and sum together, one for the gradient.
GYRE_KERNEL cross_entropy(gyre_cross_entropy_args a) {
  __shared__ float shared[32];
  for (long r = blockIdx.x; r < a.rows; r += gridDim.x) {
    long row = r * a.columns;
    int target = a.targets[r];
    if (target < 0) {
      if (threadIdx.x == 0 && present(a.loss)) store(a.loss, r, 0.f);
      if (present(a.gradient))
        for (long c = threadIdx.x; c < a.columns; c += blockDim.x) store(a.gradient, row + c, 0.f);
      continue;
    }
    bool wide = a.columns % 8 == 0 && is_wide(a.logits);
    float top = -INFINITY, sum = 0.f;
    for (long c = threadIdx.x * 8; c < a.columns; c += blockDim.x * 8) {
      float x[8];
      if (wide) {
        load8(a.logits, row + c, x);
      } else {
#pragma unroll
        for (int j = 0; j < 8; j++)
          x[j] = c + j < a.columns ? load(a.logits, row + c + j) : -INFINITY;
      }
      float high = top;
#pragma unroll
      for (int j = 0; j < 8; j++) high = fmaxf(high, x[j]);
      if (high == -INFINITY) continue;
      sum *= expf(top - high);
#pragma unroll
      for (int j = 0; j < 8; j++) sum += expf(x[j] - high);
      top = high;
    }
    float high = block_max(top, shared);
    sum = block_sum(top == -INFINITY ? 0.f : sum * expf(top - high), shared);
    float at_target = load(a.logits, row + target);
    __syncthreads();  // the gradient may overwrite the logits
    if (threadIdx.x == 0 && present(a.loss)) store(a.loss, r, logf(sum) + high - at_target);
    if (!present(a.gradient)) continue;
    float scale = load_or(a.scale, 0, 1.f) / a.counted[0];
    float each = scale / sum;
    bool wide_gradient = wide && is_wide(a.gradient);
    for (long c = threadIdx.x * 8; c < a.columns; c += blockDim.x * 8) {
      float x[8];
      if (wide) {
        load8(a.logits, row + c, x);
      } else {
#pragma unroll
        for (int j = 0; j < 8; j++) x[j] = c + j < a.columns ? load(a.logits, row + c + j) : 0.f;
      }
#pragma unroll
      for (int j = 0; j < 8; j++)
        x[j] = expf(x[j] - high) * each - (c + j == target ? scale : 0.f);
      if (wide_gradient) {
        store8(a.gradient, row + c, x);
      } else {
#pragma unroll
        for (int j = 0; j < 8; j++)
          if (c + j < a.columns) store(a.gradient, row + c + j, x[j]);
      }
    }
  }
}

// One block of 256: the sum in double over the count.
GYRE_KERNEL mean_loss(gyre_mean_args a) {
  __shared__ double shared[256];
  double sum = 0.;
  for (long i = threadIdx.x; i < a.count; i += 256) sum += load(a.x, i);
  shared[threadIdx.x] = sum;
  for (int o = 128; o; o >>= 1) {
    __syncthreads();
    if (threadIdx.x < o) shared[threadIdx.x] += shared[threadIdx.x + o];
  }
  if (threadIdx.x == 0) store(a.out, 0, (float)(shared[0] / a.counted[0]));
}
