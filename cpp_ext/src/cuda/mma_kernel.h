// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// attention_mma as kernels, for the mma_*.cu files. kBlocks: blocks a multiprocessor should hold at a time, which
// bounds the registers of a thread.
#pragma once

#include "attention_mma.h"
#include "kernels.h"

namespace rushes::cuda {

template <class S, int kBlocks>
__global__ void __launch_bounds__(S::kThreads, kBlocks) attention_mma_kernel(const __grid_constant__ Problem problem) {
    attention_mma<S>(problem);
}

template <class S, int kBlocks>
Kernel mma_entry() {
    return {reinterpret_cast<const void*>(&attention_mma_kernel<S, kBlocks>),
            S::D, S::kRows, S::kKeys, S::kThreads, S::kSharedBytes};
}

}  // namespace rushes::cuda
