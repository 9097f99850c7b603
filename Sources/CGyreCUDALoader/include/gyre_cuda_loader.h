// Tables of function pointers into NVIDIA's libraries, found when the process runs. Nothing of the
// toolkit is needed to build this; the declarations are our own and only as wide as we use them.
//
// Every table can also be filled by hand, which is how host logic is tested without a GPU.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GYRE_CUDA_FN(result, name, ...) result (*_Nonnull name)(__VA_ARGS__)

// Device addresses and opaque handles of the driver.
typedef uint64_t gyre_cuda_address;
typedef void *_Nullable gyre_cuda_handle;

// Results of the driver that are told apart.
enum {
  GYRE_CUDA_SUCCESS = 0,
  GYRE_CUDA_OUT_OF_MEMORY = 2,
  GYRE_CUDA_NO_DEVICE = 100,
  GYRE_CUDA_NOT_READY = 600,
};
// Attributes of devices and of functions.
enum {
  GYRE_CUDA_MULTIPROCESSORS = 16,
  GYRE_CUDA_SHARED_PER_MULTIPROCESSOR = 81,
  GYRE_CUDA_COOPERATIVE = 95,
  GYRE_CUDA_SHARED_PER_BLOCK_OPTIN = 97,
  GYRE_CUDA_CAPABILITY_MAJOR = 75,
  GYRE_CUDA_CAPABILITY_MINOR = 76,
  GYRE_CUDA_FUNCTION_MAX_SHARED = 8,
};
// Of tensor maps: the element type, rows of 128 bytes exchanged in pieces, reads of 128 bytes.
enum {
  GYRE_CUDA_MAP_BF16 = 9,
  GYRE_CUDA_MAP_SWIZZLE_NONE = 0,
  GYRE_CUDA_MAP_SWIZZLE_128 = 3,
  GYRE_CUDA_MAP_PROMOTION_128 = 2,
};

// CUlaunchAttribute and CUlaunchConfig.
typedef struct gyre_cuda_launch_attribute {
  unsigned id, unused;
  unsigned long long value[8];
} gyre_cuda_launch_attribute;
typedef struct gyre_cuda_launch_config {
  unsigned grid[3], threads[3], shared;
  gyre_cuda_handle stream;
  gyre_cuda_launch_attribute *_Nullable attributes;
  unsigned count;
} gyre_cuda_launch_config;
// The kernel may begin when those before it say so.
enum { GYRE_CUDA_LAUNCH_EARLY = 6 };

// libcuda: the driver.
typedef struct gyre_cuda_driver {
  GYRE_CUDA_FN(int, start, unsigned flags);
  GYRE_CUDA_FN(int, driver_version, int *_Nonnull version);
  GYRE_CUDA_FN(int, error_name, int code, const char *_Nullable *_Nonnull text);
  GYRE_CUDA_FN(int, error_string, int code, const char *_Nullable *_Nonnull text);
  GYRE_CUDA_FN(int, device_count, int *_Nonnull count);
  GYRE_CUDA_FN(int, device_get, int *_Nonnull device, int ordinal);
  GYRE_CUDA_FN(int, device_name, char *_Nonnull name, int size, int device);
  GYRE_CUDA_FN(int, device_attribute, int *_Nonnull value, int attribute, int device);
  GYRE_CUDA_FN(int, device_memory, size_t *_Nonnull bytes, int device);
  GYRE_CUDA_FN(int, context_retain, gyre_cuda_handle *_Nonnull context, int device);
  GYRE_CUDA_FN(int, context_release, int device);
  GYRE_CUDA_FN(int, context_set, gyre_cuda_handle context);
  GYRE_CUDA_FN(int, stream_create, gyre_cuda_handle *_Nonnull stream, unsigned flags);
  GYRE_CUDA_FN(int, stream_destroy, gyre_cuda_handle stream);
  GYRE_CUDA_FN(int, stream_synchronize, gyre_cuda_handle stream);
  GYRE_CUDA_FN(
    int, stream_wait, gyre_cuda_handle stream, gyre_cuda_handle event, unsigned flags);
  GYRE_CUDA_FN(int, event_create, gyre_cuda_handle *_Nonnull event, unsigned flags);
  GYRE_CUDA_FN(int, event_destroy, gyre_cuda_handle event);
  GYRE_CUDA_FN(int, event_record, gyre_cuda_handle event, gyre_cuda_handle stream);
  GYRE_CUDA_FN(int, event_synchronize, gyre_cuda_handle event);
  GYRE_CUDA_FN(int, event_elapsed, float *_Nonnull ms, gyre_cuda_handle start, gyre_cuda_handle end);
  GYRE_CUDA_FN(int, memory_info, size_t *_Nonnull available, size_t *_Nonnull total);
  GYRE_CUDA_FN(int, memory_allocate, gyre_cuda_address *_Nonnull address, size_t bytes);
  GYRE_CUDA_FN(int, memory_free, gyre_cuda_address address);
  GYRE_CUDA_FN(int, host_allocate, void *_Nullable *_Nonnull memory, size_t bytes, unsigned flags);
  GYRE_CUDA_FN(int, host_free, void *_Nullable memory);
  GYRE_CUDA_FN(
    int, copy_to_device, gyre_cuda_address to, const void *_Nonnull from, size_t bytes,
    gyre_cuda_handle stream);
  GYRE_CUDA_FN(
    int, copy_to_host, void *_Nonnull to, gyre_cuda_address from, size_t bytes,
    gyre_cuda_handle stream);
  GYRE_CUDA_FN(
    int, copy_on_device, gyre_cuda_address to, gyre_cuda_address from, size_t bytes,
    gyre_cuda_handle stream);
  GYRE_CUDA_FN(
    int, set_bytes, gyre_cuda_address to, unsigned char value, size_t count,
    gyre_cuda_handle stream);
  GYRE_CUDA_FN(int, module_load, gyre_cuda_handle *_Nonnull module, const void *_Nonnull image);
  GYRE_CUDA_FN(int, module_unload, gyre_cuda_handle module);
  GYRE_CUDA_FN(
    int, module_function, gyre_cuda_handle *_Nonnull function, gyre_cuda_handle module,
    const char *_Nonnull name);
  GYRE_CUDA_FN(int, function_set, gyre_cuda_handle function, int attribute, int value);
  // Encodes 128 bytes at a multiple of 64: boxes of a tensor for the copy engine of sm_90.
  GYRE_CUDA_FN(
    int, tensor_map, void *_Nonnull map, int dtype, unsigned rank, gyre_cuda_address address,
    const uint64_t *_Nonnull sizes, const uint64_t *_Nonnull strides, const uint32_t *_Nonnull box,
    const uint32_t *_Nonnull steps, int interleave, int swizzle, int promotion, int fill);
  GYRE_CUDA_FN(
    int, occupancy, int *_Nonnull blocks, gyre_cuda_handle function, int threads, size_t shared);
  GYRE_CUDA_FN(
    int, launch, gyre_cuda_handle function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
    unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared, gyre_cuda_handle stream,
    void *_Nullable *_Nullable parameters, void *_Nullable *_Nullable extra);
  GYRE_CUDA_FN(
    int, launch_with, const gyre_cuda_launch_config *_Nonnull how, gyre_cuda_handle function,
    void *_Nullable *_Nullable parameters, void *_Nullable *_Nullable extra);
  GYRE_CUDA_FN(
    int, launch_cooperative, gyre_cuda_handle function, unsigned grid_x, unsigned grid_y,
    unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
    gyre_cuda_handle stream, void *_Nullable *_Nullable parameters);
  GYRE_CUDA_FN(int, capture_begin, gyre_cuda_handle stream, int mode);
  GYRE_CUDA_FN(int, capture_end, gyre_cuda_handle stream, gyre_cuda_handle *_Nonnull graph);
  GYRE_CUDA_FN(
    int, graph_instantiate, gyre_cuda_handle *_Nonnull executable, gyre_cuda_handle graph,
    unsigned long long flags);
  GYRE_CUDA_FN(int, graph_launch, gyre_cuda_handle executable, gyre_cuda_handle stream);
  GYRE_CUDA_FN(int, graph_executable_destroy, gyre_cuda_handle executable);
  GYRE_CUDA_FN(int, graph_destroy, gyre_cuda_handle graph);
} gyre_cuda_driver;

// libnvrtc: the run-time compiler.
typedef struct gyre_cuda_compiler {
  GYRE_CUDA_FN(int, version, int *_Nonnull major, int *_Nonnull minor);
  GYRE_CUDA_FN(const char *_Nullable, error_string, int code);
  GYRE_CUDA_FN(
    int, create, gyre_cuda_handle *_Nonnull program, const char *_Nonnull source,
    const char *_Nullable name, int header_count, const char *_Nullable const *_Nullable headers,
    const char *_Nullable const *_Nullable header_names);
  GYRE_CUDA_FN(int, destroy, gyre_cuda_handle *_Nonnull program);
  GYRE_CUDA_FN(
    int, compile, gyre_cuda_handle program, int option_count,
    const char *_Nullable const *_Nullable options);
  GYRE_CUDA_FN(int, log_size, gyre_cuda_handle program, size_t *_Nonnull size);
  GYRE_CUDA_FN(int, log, gyre_cuda_handle program, char *_Nonnull text);
  GYRE_CUDA_FN(int, cubin_size, gyre_cuda_handle program, size_t *_Nonnull size);
  GYRE_CUDA_FN(int, cubin, gyre_cuda_handle program, char *_Nonnull bytes);
  GYRE_CUDA_FN(int, arch_count, int *_Nonnull count);
  GYRE_CUDA_FN(int, archs, int *_Nonnull list);
} gyre_cuda_compiler;

// What cublasLtMatmulAlgoGetHeuristic answers with.
typedef struct gyre_cublas_heuristic {
  uint64_t algorithm[8];
  size_t workspace;
  int status;
  float waves;
  int reserved[4];
} gyre_cublas_heuristic;

// Names of cuBLASLt's numbers: types, compute types, epilogues, reductions.
enum {
  GYRE_CUBLAS_F32 = 0,
  GYRE_CUBLAS_F16 = 2,
  GYRE_CUBLAS_BF16 = 14,
  GYRE_CUBLAS_COMPUTE_F32 = 68,
  GYRE_CUBLAS_EPILOGUE_BIAS = 4,
  // Partial sums in the workspace, added in a fixed order.
  GYRE_CUBLAS_REDUCTION_WORKSPACE = 2,
};
// Attributes of operations, of layouts and of preferences.
enum {
  GYRE_CUBLAS_DESC_TRANSPOSE_A = 3,
  GYRE_CUBLAS_DESC_TRANSPOSE_B = 4,
  GYRE_CUBLAS_DESC_EPILOGUE = 7,
  GYRE_CUBLAS_DESC_BIAS = 8,
};
enum {
  GYRE_CUBLAS_LAYOUT_BATCH = 5,
  GYRE_CUBLAS_LAYOUT_STRIDE = 6,
};
enum {
  GYRE_CUBLAS_PREFERENCE_WORKSPACE = 1,
  GYRE_CUBLAS_PREFERENCE_REDUCTIONS = 3,
  GYRE_CUBLAS_PREFERENCE_ALIGN_A = 5,
  GYRE_CUBLAS_PREFERENCE_ALIGN_B = 6,
  GYRE_CUBLAS_PREFERENCE_ALIGN_C = 7,
  GYRE_CUBLAS_PREFERENCE_ALIGN_D = 8,
};

// libcublasLt: matrix products.
typedef struct gyre_cuda_products {
  GYRE_CUDA_FN(size_t, version, void);
  GYRE_CUDA_FN(int, create, gyre_cuda_handle *_Nonnull handle);
  GYRE_CUDA_FN(int, destroy, gyre_cuda_handle handle);
  GYRE_CUDA_FN(
    int, matmul, gyre_cuda_handle handle, gyre_cuda_handle operation, const void *_Nonnull alpha,
    gyre_cuda_address a, gyre_cuda_handle a_layout, gyre_cuda_address b, gyre_cuda_handle b_layout,
    const void *_Nonnull beta, gyre_cuda_address c, gyre_cuda_handle c_layout, gyre_cuda_address d,
    gyre_cuda_handle d_layout, const uint64_t *_Nullable algorithm, gyre_cuda_address workspace,
    size_t workspace_size, gyre_cuda_handle stream);
  GYRE_CUDA_FN(
    int, operation_create, gyre_cuda_handle *_Nonnull operation, int compute, int scale_type);
  GYRE_CUDA_FN(int, operation_destroy, gyre_cuda_handle operation);
  GYRE_CUDA_FN(
    int, operation_set, gyre_cuda_handle operation, int attribute, const void *_Nonnull value,
    size_t size);
  GYRE_CUDA_FN(
    int, layout_create, gyre_cuda_handle *_Nonnull layout, int type, uint64_t rows,
    uint64_t columns, int64_t leading);
  GYRE_CUDA_FN(int, layout_destroy, gyre_cuda_handle layout);
  GYRE_CUDA_FN(
    int, layout_set, gyre_cuda_handle layout, int attribute, const void *_Nonnull value,
    size_t size);
  GYRE_CUDA_FN(int, preference_create, gyre_cuda_handle *_Nonnull preference);
  GYRE_CUDA_FN(int, preference_destroy, gyre_cuda_handle preference);
  GYRE_CUDA_FN(
    int, preference_set, gyre_cuda_handle preference, int attribute, const void *_Nonnull value,
    size_t size);
  GYRE_CUDA_FN(
    int, heuristic, gyre_cuda_handle handle, gyre_cuda_handle operation, gyre_cuda_handle a,
    gyre_cuda_handle b, gyre_cuda_handle c, gyre_cuda_handle d, gyre_cuda_handle preference,
    int wanted, gyre_cublas_heuristic *_Nonnull results, int *_Nonnull found);
} gyre_cuda_products;

// The word by which the ranks of one communicator find each other.
typedef struct gyre_nccl_identifier {
  char bytes[128];
} gyre_nccl_identifier;

enum {
  GYRE_NCCL_SUCCESS = 0,
  GYRE_NCCL_IN_PROGRESS = 7,
  GYRE_NCCL_UINT8 = 1,
  GYRE_NCCL_FLOAT32 = 7,
  GYRE_NCCL_SUM = 0,
};

// libnccl: collectives between cards.
typedef struct gyre_nccl {
  GYRE_CUDA_FN(int, version, int *_Nonnull version);
  GYRE_CUDA_FN(const char *_Nullable, error_string, int code);
  GYRE_CUDA_FN(int, identifier, gyre_nccl_identifier *_Nonnull identifier);
  GYRE_CUDA_FN(
    int, create, gyre_cuda_handle *_Nonnull communicator, int count,
    gyre_nccl_identifier identifier, int rank);
  GYRE_CUDA_FN(int, destroy, gyre_cuda_handle communicator);
  GYRE_CUDA_FN(int, abort, gyre_cuda_handle communicator);
  GYRE_CUDA_FN(int, asynchronous_error, gyre_cuda_handle communicator, int *_Nonnull code);
  GYRE_CUDA_FN(int, group_start, void);
  GYRE_CUDA_FN(int, group_end, void);
  GYRE_CUDA_FN(
    int, all_reduce, gyre_cuda_address from, gyre_cuda_address to, size_t count, int type,
    int operation, gyre_cuda_handle communicator, gyre_cuda_handle stream);
  GYRE_CUDA_FN(
    int, all_gather, gyre_cuda_address from, gyre_cuda_address to, size_t count, int type,
    gyre_cuda_handle communicator, gyre_cuda_handle stream);
  GYRE_CUDA_FN(
    int, send, gyre_cuda_address from, size_t count, int type, int peer,
    gyre_cuda_handle communicator, gyre_cuda_handle stream);
  GYRE_CUDA_FN(
    int, receive, gyre_cuda_address to, size_t count, int type, int peer,
    gyre_cuda_handle communicator, gyre_cuda_handle stream);
} gyre_nccl;

// Each opens its library once a process and keeps it; nil when it is missing, with a message that
// says what was looked for, where, and how to get it. `found` is the path that was opened.
//
// Looked for, in this order: the folders of GYRE_CUDA_PATH (separated by colons) and their lib64
// and lib; the dynamic linker's; /usr/local/cuda*/lib64; the folders of Python wheels.
typedef struct gyre_cuda_library_status {
  char message[1024];
  char found[512];
} gyre_cuda_library_status;

const gyre_cuda_driver *_Nullable gyre_cuda_load_driver(gyre_cuda_library_status *_Nonnull status);
const gyre_cuda_compiler *_Nullable
gyre_cuda_load_compiler(gyre_cuda_library_status *_Nonnull status);
const gyre_cuda_products *_Nullable
gyre_cuda_load_products(gyre_cuda_library_status *_Nonnull status);
const gyre_nccl *_Nullable gyre_cuda_load_nccl(gyre_cuda_library_status *_Nonnull status);
