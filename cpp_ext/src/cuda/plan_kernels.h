// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#pragma once

#include <cuda_runtime.h>

namespace rushes::cuda {

struct Plan;

// Asks for plan.h's kernels, in order, on the stream.
cudaError_t make_plan(const Plan& plan, cudaStream_t stream);

}  // namespace rushes::cuda
