// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Tensor maps for attention_sm90.h, made on the host by the driver.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "rushes/attention_cuda.h"

namespace rushes::cuda {

// As attention_sm90.h has it, which only the device's compiler reads.
struct HostMaps {
    CUtensorMap q, k, v;
};

// Null, or the sentence that says why not. panel: channels of a box.
const char* make_maps(HostMaps& maps, const CudaAttention& a, int panel) noexcept;

}  // namespace rushes::cuda
