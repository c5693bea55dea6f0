// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#include "sm90_kernel.h"

namespace rushes::cuda {

Kernels sm90_d64_fp16() {
    static const Kernel kTable[] = {
        sm90_entry<Sm90Shape<Float16, 64, 128, 4, false>>(),
        sm90_entry<Sm90Shape<Float16, 64, 128, 4, true>>(),
    };
    return {kTable, 2};
}

}  // namespace rushes::cuda
