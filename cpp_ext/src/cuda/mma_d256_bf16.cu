// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#include "mma_kernel.h"

namespace rushes::cuda {

Kernels mma_d256_bf16() {
    static const Kernel kTable[] = {
        mma_entry<MmaShape<BFloat16, 256, 4, 1, 64, 1>, 1>(),  // 96 KB
    };
    return {kTable, 1};
}

}  // namespace rushes::cuda
