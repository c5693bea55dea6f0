// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// attention_sm90 as kernels, for the sm90_*.cu files. The bound of one block is what setmaxnreg needs: 65536 registers
// over 384 threads, of which the producer then gives the consumers its share: 40 * 128 + 232 * 256 = 64512.
#pragma once

#include "attention_sm90.h"
#include "kernels.h"

namespace rushes::cuda {

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    attention_sm90_kernel(const __grid_constant__ Problem problem, const __grid_constant__ Maps maps) {
    attention_sm90<S>(problem, maps);
}

template <class S>
Kernel sm90_entry() {
    static_assert(S::kSharedBytes <= 227 * 1024, "what a block may have");
    return {reinterpret_cast<const void*>(&attention_sm90_kernel<S>),
            S::D, S::kRows, S::kKeys, S::kThreads, S::kSharedBytes};
}

}  // namespace rushes::cuda
