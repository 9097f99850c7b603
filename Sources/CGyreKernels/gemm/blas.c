// An installed BLAS, found at run time, for the caller to compare with.
#include "ck_gemm.h"
#include <dlfcn.h>
#include <pthread.h>

typedef void (*sgemm_function)(int order, int transpose_a, int transpose_b, int m, int n, int k,
                               float alpha, const float *a, int lda, const float *b, int ldb,
                               float beta, float *c, int ldc);
enum { ROW_MAJOR = 101, NO_TRANSPOSE = 111, TRANSPOSE = 112 };

static sgemm_function sgemm;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void run(const struct ck_gemm_args *args) {
  sgemm(ROW_MAJOR, args->transpose_a ? TRANSPOSE : NO_TRANSPOSE,
        args->transpose_b ? TRANSPOSE : NO_TRANSPOSE, (int)args->m, (int)args->n, (int)args->k,
        args->alpha, args->a, (int)args->lda, args->b, (int)args->ldb, args->beta, args->c,
        (int)args->ldc);
}

ck_blas_sgemm ck_blas_load(const char *path) {
  pthread_mutex_lock(&lock);
  if (!sgemm) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void *symbol = library ? dlsym(library, "cblas_sgemm") : NULL;
    if (symbol) sgemm = (sgemm_function)symbol;
    else if (library) dlclose(library);
  }
  pthread_mutex_unlock(&lock);
  return sgemm ? run : NULL;
}
