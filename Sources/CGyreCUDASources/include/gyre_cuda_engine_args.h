// Arguments of the engines' kernels; see gyre_cuda_args.h.
#pragma once
#include "gyre_cuda_args.h"
