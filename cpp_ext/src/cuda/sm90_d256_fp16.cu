// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#include "sm90_kernel.h"

namespace rushes::cuda {

Kernels sm90_d256_fp16() {
    static const Kernel kTable[] = {
        sm90_entry<Sm90Shape<Float16, 256, 64, 2, false>>(),
        sm90_entry<Sm90Shape<Float16, 256, 64, 2, true>>(),
    };
    return {kTable, 2};
}

}  // namespace rushes::cuda
