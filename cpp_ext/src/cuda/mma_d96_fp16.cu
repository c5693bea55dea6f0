// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#include "mma_kernel.h"

namespace rushes::cuda {

Kernels mma_d96_fp16() {
    static const Kernel kTable[] = {
        mma_entry<MmaShape<Float16, 96, 4, 2, 64, 1>, 2>(),  // 48 KB
        mma_entry<MmaShape<Float16, 96, 4, 1, 64, 1>, 2>(),  // 36 KB
    };
    return {kTable, 2};
}

}  // namespace rushes::cuda
