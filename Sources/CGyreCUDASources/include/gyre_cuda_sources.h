// The text of the CUDA kernels, compiled by NVRTC when the process runs.
#pragma once

// One file of kernels.
typedef struct gyre_cuda_source {
  const char *_Nullable name;  // without the extension: "pointwise"
  const char *_Nullable text;
} gyre_cuda_source;

// Every file of kernels; ends with a nil name.
const gyre_cuda_source *_Nonnull gyre_cuda_kernel_sources(void);
// Every header that kernels include, named with its extension; ends with a nil name.
const gyre_cuda_source *_Nonnull gyre_cuda_kernel_headers(void);
