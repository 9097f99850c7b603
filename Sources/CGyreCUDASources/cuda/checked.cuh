// For tools that follow every access (GYRE_CHECKED_KERNELS): the same in forms that they know.
#pragma once

#ifdef GYRE_CHECKED
#define CHECKED true
#else
#define CHECKED false
#endif

// One of threads that have met arrives for all of them: `speaks` is true in that one. Tools take only what a thread
// did that arrives itself for ordered, so checked kernels have all of them arrive.
static __device__ __forceinline__ bool arrives(bool speaks) { return CHECKED || speaks; }
#define ARRIVALS(threads) (CHECKED ? (threads) : 1)
