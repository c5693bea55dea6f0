// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#include "mma_kernel.h"

namespace rushes::cuda {

// Two blocks on a multiprocessor, one's products under the other's softmax, want at most half its shared memory: 64 KB
// where it has 164 or more (sm_80, sm_100), 48 KB where it has 100 (sm_86, sm_89, sm_120).
Kernels mma_d128_fp16() {
    static const Kernel kTable[] = {
        mma_entry<MmaShape<Float16, 128, 4, 2, 64, 1>, 2>(),  // 64 KB
        mma_entry<MmaShape<Float16, 128, 4, 2, 32, 1>, 2>(),  // 48 KB
        mma_entry<MmaShape<Float16, 128, 4, 1, 64, 1>, 2>(),  // 48 KB
    };
    return {kTable, 3};
}

}  // namespace rushes::cuda
