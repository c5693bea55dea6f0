// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#include "sm90_kernel.h"

namespace rushes::cuda {

Kernels sm90_d128_bf16() {
    static const Kernel kTable[] = {
        sm90_entry<Sm90Shape<BFloat16, 128, 128, 2, false>>(),
        sm90_entry<Sm90Shape<BFloat16, 128, 128, 2, true>>(),
    };
    return {kTable, 2};
}

}  // namespace rushes::cuda
