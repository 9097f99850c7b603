// What kernels know of the machine's caches.
#include "ck_common.h"
#include <pthread.h>
#include <unistd.h>
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

enum { COMMON_BYTES = 512 << 10 };

static long near_bytes;

static void ask(void) {
#if defined(__linux__) && defined(_SC_LEVEL2_CACHE_SIZE)
  near_bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#elif defined(__APPLE__)
  // Shared by a cluster of processors: each has a part of it.
  long size = 0;
  size_t length = sizeof size;
  if (sysctlbyname("hw.perflevel0.l2cachesize", &size, &length, NULL, 0) == 0) near_bytes = size / 4;
#endif
  if (near_bytes <= 0) near_bytes = COMMON_BYTES;
}

long ck_near_cache_bytes(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, ask);
  return near_bytes;
}
