// The order in which a mixture of memories takes tokens: see MemoryOrder and UnstableSort.
#include "gyre_cuda_engine_args.h"
#include "prelude.cuh"

struct Item {
  int key, position;
};

// MARK: choices

// A thread a token: its largest probabilities, the first of equals.
GYRE_KERNEL memory_choices(const __grid_constant__ gyre_memory_order_args a) {
  const long rows = a.batch * a.tokens, M = a.memories;
  for (long r = (long)blockIdx.x * blockDim.x + threadIdx.x; r < rows;
       r += (long)gridDim.x * blockDim.x) {
    long chosen = -1;
    float last = 0.f;
    for (int n = 0; n < a.count; n++) {
      long best = -1;
      float most = 0.f;
      for (long m = 0; m < M; m++) {
        const float x = load(a.p, r * M + m);
        // Not one of those before.
        const bool is_left = n == 0 || x < last || (x == last && m > chosen);
        if (is_left && (best < 0 || x > most)) best = m, most = x;
      }
      chosen = best < 0 ? n : best, last = most;  // no number is larger than none
      const long at = r * a.count + n;
      a.keys[at] = (int)(r / a.tokens * M + chosen);
      if (a.items) ((Item *)a.items)[at] = {a.keys[at], (int)at};
    }
  }
}

// MARK: sort

// Pieces of no more items are sorted by insertion, which keeps equals in order.
enum { SMALL = 16 };

GYRE_DEVICE void insert(Item *items, int first, int end) {
  const int lane = threadIdx.x & 31, count = end - first;
  const Item item = lane < count ? items[first + lane] : Item{0, 0};
  int place = 0;
  for (int j = 0; j < count; j++) {
    const int key = __shfl_sync(~0u, item.key, j);
    place += key < item.key || (key == item.key && j < lane);
  }
  __syncwarp();
  if (lane < count) items[first + place] = item;
}

// Moves the hole at `top` along the larger children to a leaf, then the item up from there.
GYRE_DEVICE void sink(Item *items, int top, int count, Item item) {
  int hole = top, child = top;
  while (child < (count - 1) / 2) {
    child = 2 * (child + 1);
    if (items[child].key < items[child - 1].key) child--;
    items[hole] = items[child];
    hole = child;
  }
  if (count % 2 == 0 && child == (count - 2) / 2) {
    child = 2 * child + 1;
    items[hole] = items[child];
    hole = child;
  }
  while (hole > top && items[(hole - 1) / 2].key < item.key) {
    items[hole] = items[(hole - 1) / 2];
    hole = (hole - 1) / 2;
  }
  items[hole] = item;
}
GYRE_DEVICE void heap_sort(Item *items, int count) {
  for (int parent = (count - 2) / 2; parent >= 0; parent--)
    sink(items, parent, count, items[parent]);
  for (int last = count - 1; last > 0; last--) {
    const Item item = items[last];
    items[last] = items[0];
    sink(items, 0, last, item);
  }
}

// Positions from first to end whose item compares as `test` says, in order into `places`; their number.
template <typename Test>
GYRE_DEVICE int list(const Item *items, int first, int end, int *places, Test test) {
  const int lane = threadIdx.x & 31;
  int count = 0;
  for (int i = first; i < end; i += 32) {
    const bool is_in = i + lane < end && test(items[i + lane].key);
    const unsigned votes = __ballot_sync(~0u, is_in);
    if (is_in) places[count + __popc(votes & ((1u << lane) - 1))] = i + lane;
    count += __popc(votes);
  }
  return count;
}

// One partition by a warp. Going through a piece from both ends changes the i-th item from the left that
// is no less than the median with the i-th from the right that is no greater, while these are in order.
GYRE_DEVICE int partition(Item *items, int first, int end, int *left, int *right) {
  const int lane = threadIdx.x & 31;
  if (lane == 0) {
    const int x = first + 1, y = first + (end - first) / 2, z = end - 1;
    const int kx = items[x].key, ky = items[y].key, kz = items[z].key;
    const int median =
        kx < ky ? (ky < kz ? y : kx < kz ? z : x) : (kx < kz ? x : ky < kz ? z : y);
    const Item item = items[first];
    items[first] = items[median];
    items[median] = item;
  }
  __syncwarp();
  const int pivot = items[first].key;
  const int lefts = list(items, first + 1, end, left, [&](int key) { return key >= pivot; });
  const int rights = list(items, first + 1, end, right, [&](int key) { return key <= pivot; });
  __syncwarp();
  auto from_right = [&](int i) { return right[rights - 1 - i]; };
  int swaps = 0;
  for (int i = 0; i < min(lefts, rights); i += 32) {
    const bool is_pair = i + lane < min(lefts, rights) && left[i + lane] < from_right(i + lane);
    const int pairs = __popc(__ballot_sync(~0u, is_pair));
    swaps += pairs;
    if (pairs < 32) break;
  }
  for (int i = lane; i < swaps; i += 32) {
    const int low = left[i], high = from_right(i);
    const Item item = items[low];
    items[low] = items[high];
    items[high] = item;
  }
  // Where the walk from the left stops: at its next item or at the last one that was changed.
  int cut = swaps < lefts ? left[swaps] : end;
  if (swaps > 0) cut = min(cut, from_right(swaps - 1));
  __syncwarp();
  return cut;
}

// One block; a warp a piece. All pieces of a level have been parted as often.
GYRE_KERNEL memory_sort(const __grid_constant__ gyre_memory_order_args a) {
  __shared__ int counts[2];
  Item *items = (Item *)a.items;
  int2 *pieces = (int2 *)a.pieces;
  const int all = (int)(a.batch * a.tokens * a.count);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  if (threadIdx.x == 0) {
    pieces[0] = make_int2(0, all);
    counts[0] = 1, counts[1] = 0;
  }
  __syncthreads();
  for (int level = 0;; level++) {
    const int2 *now = pieces + (level & 1) * (long)all;
    int2 *next = pieces + (~level & 1) * (long)all;
    const int count = counts[level & 1];
    if (count == 0) return;
    for (int i = warp; i < count; i += warps) {
      const int first = now[i].x, end = now[i].y;
      if (end - first <= SMALL) {
        insert(items, first, end);
      } else if (level == a.depth) {
        if (lane == 0) heap_sort(items + first, end - first);
      } else {
        const int cut = partition(items, first, end, a.places + first, a.places + all + first);
        if (lane == 0) {
          // Which of them comes first changes nothing.
          const int at = atomicAdd(&counts[~level & 1], 2);
          next[at] = make_int2(first, cut);
          next[at + 1] = make_int2(cut, end);
        }
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) counts[level & 1] = 0;
    __syncthreads();
  }
}

// MARK: places

// A block a lane of a batch row: tokens that it takes, in the order of the sorted items or their own, then
// the others. 256 threads.
GYRE_KERNEL memory_places(const __grid_constant__ gyre_memory_order_args a) {
  __shared__ int sums[8];
  const long b = blockIdx.x / a.lanes, own = blockIdx.x % a.lanes, T = a.tokens;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int key = (int)(b * a.memories + own);
  auto row = [&](long t) { return (b * T + t) * a.lanes + own; };
  auto takes = [&](long t) {
    if (own >= a.memories) return true;
    for (int n = 0; n < a.count; n++)
      if (a.keys[(b * T + t) * a.count + n] == key) return true;
    return false;
  };
  auto put = [&](long place, long t, bool is_taken) {
    if (place >= T) return;  // only where probabilities are no numbers
    store(a.taken, row(place), is_taken ? 1.f : 0.f);
    a.order[row(place)] = (int)row(t);
    a.inverse[row(t)] = (int)row(place);
  };
  // Of tokens first to first + 255: those taken before a thread's, and in all.
  auto ranks = [&](long t, bool is_taken, int &all) {
    const unsigned votes = __ballot_sync(~0u, is_taken);
    __syncthreads();
    if (lane == 0) sums[warp] = __popc(votes);
    __syncthreads();
    int before = 0;
    all = 0;
    for (int w = 0; w < 8; w++) {
      if (w < warp) before += sums[w];
      all += sums[w];
    }
    return before + __popc(votes & ((1u << lane) - 1));
  };
  int total = 0, here;
  for (long t = threadIdx.x; t - threadIdx.x < T; t += 256) {
    ranks(t, t < T && takes(t), here);
    total += here;
  }
  const bool is_sorted = a.items && own < a.memories;
  int taken = 0;
  for (long t = threadIdx.x; t - threadIdx.x < T; t += 256) {
    const bool is_taken = t < T && takes(t);
    const int before = taken + ranks(t, is_taken, here);
    taken += here;
    if (t < T && !(is_taken && is_sorted)) put(is_taken ? before : total + t - before, t, is_taken);
  }
  if (!is_sorted) return;
  const Item *items = (const Item *)a.items;
  int low = 0, high = (int)(a.batch * T * a.count);
  while (low < high) {
    const int middle = (low + high) / 2;
    if (items[middle].key < key) low = middle + 1;
    else high = middle;
  }
  for (int i = threadIdx.x; i < total; i += 256) {
    const long t = items[low + i].position / a.count % T;
    put(i, t, true);
  }
}
