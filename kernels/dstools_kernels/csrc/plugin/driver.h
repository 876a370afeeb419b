// The CUDA driver, found at run time, and the kernels of this library in it.
//
// Nothing of CUDA is linked: a machine without a driver loads the library and builds with it, and
// the first launch ends in an error.
#pragma once

#include <cuda.h>

#include "launch.h"

namespace dstools {

// Load the kernels whose names begin with one of `names` into the current context, each once.
// Called where shapes change, never while work is enqueued, so that a stream can be captured.
// Raises Error without a driver or a context, and where the driver refuses a kernel.
void load(std::vector<char const*> const& names);

// Enqueue launches in order. Raises Error where a kernel was not loaded, or the driver refuses one.
void run(std::vector<Launch> const& launches, CUstream stream);

}  // namespace dstools
