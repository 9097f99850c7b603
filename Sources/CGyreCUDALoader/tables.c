#include <pthread.h>
#include <string.h>

#include "find.h"

#define DRIVER(field, symbol) {symbol, offsetof(gyre_cuda_driver, field)}
static const gyre_symbol driver_symbols[] = {
    DRIVER(start, "cuInit"),
    DRIVER(driver_version, "cuDriverGetVersion"),
    DRIVER(error_name, "cuGetErrorName"),
    DRIVER(error_string, "cuGetErrorString"),
    DRIVER(device_count, "cuDeviceGetCount"),
    DRIVER(device_get, "cuDeviceGet"),
    DRIVER(device_name, "cuDeviceGetName"),
    DRIVER(device_attribute, "cuDeviceGetAttribute"),
    DRIVER(device_memory, "cuDeviceTotalMem_v2"),
    DRIVER(context_retain, "cuDevicePrimaryCtxRetain"),
    DRIVER(context_release, "cuDevicePrimaryCtxRelease_v2"),
    DRIVER(context_set, "cuCtxSetCurrent"),
    DRIVER(stream_create, "cuStreamCreate"),
    DRIVER(stream_destroy, "cuStreamDestroy_v2"),
    DRIVER(stream_synchronize, "cuStreamSynchronize"),
    DRIVER(stream_wait, "cuStreamWaitEvent"),
    DRIVER(event_create, "cuEventCreate"),
    DRIVER(event_destroy, "cuEventDestroy_v2"),
    DRIVER(event_record, "cuEventRecord"),
    DRIVER(event_synchronize, "cuEventSynchronize"),
    DRIVER(event_elapsed, "cuEventElapsedTime"),
    DRIVER(memory_info, "cuMemGetInfo_v2"),
    DRIVER(memory_allocate, "cuMemAlloc_v2"),
    DRIVER(memory_free, "cuMemFree_v2"),
    DRIVER(host_allocate, "cuMemHostAlloc"),
    DRIVER(host_free, "cuMemFreeHost"),
    DRIVER(copy_to_device, "cuMemcpyHtoDAsync_v2"),
    DRIVER(copy_to_host, "cuMemcpyDtoHAsync_v2"),
    DRIVER(copy_on_device, "cuMemcpyDtoDAsync_v2"),
    DRIVER(set_bytes, "cuMemsetD8Async"),
    DRIVER(module_load, "cuModuleLoadData"),
    DRIVER(module_unload, "cuModuleUnload"),
    DRIVER(module_function, "cuModuleGetFunction"),
    DRIVER(function_set, "cuFuncSetAttribute"),
    DRIVER(tensor_map, "cuTensorMapEncodeTiled"),
    DRIVER(occupancy, "cuOccupancyMaxActiveBlocksPerMultiprocessor"),
    DRIVER(launch, "cuLaunchKernel"),
    DRIVER(launch_with, "cuLaunchKernelEx"),
    DRIVER(launch_cooperative, "cuLaunchCooperativeKernel"),
    DRIVER(capture_begin, "cuStreamBeginCapture_v2"),
    DRIVER(capture_end, "cuStreamEndCapture"),
    DRIVER(graph_instantiate, "cuGraphInstantiateWithFlags"),
    DRIVER(graph_launch, "cuGraphLaunch"),
    DRIVER(graph_executable_destroy, "cuGraphExecDestroy"),
    DRIVER(graph_destroy, "cuGraphDestroy"),
};

#define COMPILER(field, symbol) {symbol, offsetof(gyre_cuda_compiler, field)}
static const gyre_symbol compiler_symbols[] = {
    COMPILER(version, "nvrtcVersion"),
    COMPILER(error_string, "nvrtcGetErrorString"),
    COMPILER(create, "nvrtcCreateProgram"),
    COMPILER(destroy, "nvrtcDestroyProgram"),
    COMPILER(compile, "nvrtcCompileProgram"),
    COMPILER(log_size, "nvrtcGetProgramLogSize"),
    COMPILER(log, "nvrtcGetProgramLog"),
    COMPILER(cubin_size, "nvrtcGetCUBINSize"),
    COMPILER(cubin, "nvrtcGetCUBIN"),
    COMPILER(arch_count, "nvrtcGetNumSupportedArchs"),
    COMPILER(archs, "nvrtcGetSupportedArchs"),
};

#define PRODUCTS(field, symbol) {symbol, offsetof(gyre_cuda_products, field)}
static const gyre_symbol product_symbols[] = {
    PRODUCTS(version, "cublasLtGetVersion"),
    PRODUCTS(create, "cublasLtCreate"),
    PRODUCTS(destroy, "cublasLtDestroy"),
    PRODUCTS(matmul, "cublasLtMatmul"),
    PRODUCTS(operation_create, "cublasLtMatmulDescCreate"),
    PRODUCTS(operation_destroy, "cublasLtMatmulDescDestroy"),
    PRODUCTS(operation_set, "cublasLtMatmulDescSetAttribute"),
    PRODUCTS(layout_create, "cublasLtMatrixLayoutCreate"),
    PRODUCTS(layout_destroy, "cublasLtMatrixLayoutDestroy"),
    PRODUCTS(layout_set, "cublasLtMatrixLayoutSetAttribute"),
    PRODUCTS(preference_create, "cublasLtMatmulPreferenceCreate"),
    PRODUCTS(preference_destroy, "cublasLtMatmulPreferenceDestroy"),
    PRODUCTS(preference_set, "cublasLtMatmulPreferenceSetAttribute"),
    PRODUCTS(heuristic, "cublasLtMatmulAlgoGetHeuristic"),
};

#define NCCL(field, symbol) {symbol, offsetof(gyre_nccl, field)}
static const gyre_symbol nccl_symbols[] = {
    NCCL(version, "ncclGetVersion"),
    NCCL(error_string, "ncclGetErrorString"),
    NCCL(identifier, "ncclGetUniqueId"),
    NCCL(create, "ncclCommInitRank"),
    NCCL(destroy, "ncclCommDestroy"),
    NCCL(abort, "ncclCommAbort"),
    NCCL(asynchronous_error, "ncclCommGetAsyncError"),
    NCCL(group_start, "ncclGroupStart"),
    NCCL(group_end, "ncclGroupEnd"),
    NCCL(all_reduce, "ncclAllReduce"),
    NCCL(all_gather, "ncclAllGather"),
    NCCL(send, "ncclSend"),
    NCCL(receive, "ncclRecv"),
};

enum { DRIVER_LIBRARY, COMPILER_LIBRARY, PRODUCTS_LIBRARY, NCCL_LIBRARY, LIBRARY_COUNT };

static const gyre_library libraries[LIBRARY_COUNT] = {
    {
        .sonames = (const char *const[]){"libcuda.so.1", "libcuda.so", NULL},
        .pattern = "libcuda.so.1",
        .advice = "install NVIDIA's driver, version 580 or later (nvidia-smi must work)",
        .symbols = driver_symbols,
        .symbol_count = GYRE_COUNT(driver_symbols),
    },
    {
        .sonames = (const char *const[]){"libnvrtc.so.13", "libnvrtc.so.12", NULL},
        .pattern = "libnvrtc.so.1[0-9]",
        .companion = "libnvrtc-builtins.so.1[0-9]*",
        .advice = "install the CUDA toolkit or run `pip install nvidia-cuda-nvrtc`, and name its "
                  "folder in GYRE_CUDA_PATH where it is in an unusual place",
        .symbols = compiler_symbols,
        .symbol_count = GYRE_COUNT(compiler_symbols),
    },
    {
        .sonames = (const char *const[]){"libcublasLt.so.13", "libcublasLt.so.12", NULL},
        .pattern = "libcublasLt.so.1[0-9]",
        .advice = "install the CUDA toolkit or run `pip install nvidia-cublas`, and name its "
                  "folder in GYRE_CUDA_PATH where it is in an unusual place",
        .symbols = product_symbols,
        .symbol_count = GYRE_COUNT(product_symbols),
    },
    {
        .sonames = (const char *const[]){"libnccl.so.2", "libnccl.so", NULL},
        .pattern = "libnccl.so.2*",
        .advice = "install NVIDIA's NCCL or run `pip install nvidia-nccl-cu13`, and name its folder "
                  "in GYRE_CUDA_PATH where it is in an unusual place",
        .symbols = nccl_symbols,
        .symbol_count = GYRE_COUNT(nccl_symbols),
    },
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

// A table of a library, filled at the first call; later calls give the same answer.
static bool load(int which, void *table, gyre_cuda_library_status *status) {
  static bool tried[LIBRARY_COUNT], opened[LIBRARY_COUNT];
  static gyre_cuda_library_status kept[LIBRARY_COUNT];
  pthread_mutex_lock(&lock);
  if (!tried[which]) {
    tried[which] = true;
    opened[which] = gyre_library_open(&libraries[which], table, &kept[which]);
  }
  memcpy(status, &kept[which], sizeof *status);
  bool result = opened[which];
  pthread_mutex_unlock(&lock);
  return result;
}

const gyre_cuda_driver *gyre_cuda_load_driver(gyre_cuda_library_status *status) {
  static gyre_cuda_driver table;
  return load(DRIVER_LIBRARY, &table, status) ? &table : NULL;
}

const gyre_cuda_compiler *gyre_cuda_load_compiler(gyre_cuda_library_status *status) {
  static gyre_cuda_compiler table;
  return load(COMPILER_LIBRARY, &table, status) ? &table : NULL;
}

const gyre_cuda_products *gyre_cuda_load_products(gyre_cuda_library_status *status) {
  static gyre_cuda_products table;
  return load(PRODUCTS_LIBRARY, &table, status) ? &table : NULL;
}

const gyre_nccl *gyre_cuda_load_nccl(gyre_cuda_library_status *status) {
  static gyre_nccl table;
  return load(NCCL_LIBRARY, &table, status) ? &table : NULL;
}
