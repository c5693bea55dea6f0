// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// The table of compiled kernels. Each .cu file of a head dimension and a dtype gives its own, so that they compile side
// by side and none takes long.
#pragma once

namespace rushes::cuda {

// A kernel and the shape that it was compiled for.
struct Kernel {
    const void* function;
    int D;     // head dimension that it pads to
    int rows;  // queries of a block
    int keys;  // of a step
    int threads, shared_bytes;
};

struct Kernels {
    const Kernel* first;
    int count;
};

#define RUSHES_CUDA_KERNELS(family)                                                                \
    Kernels family##_d64_bf16(), family##_d64_fp16(), family##_d96_bf16(), family##_d96_fp16(),    \
        family##_d128_bf16(), family##_d128_fp16(), family##_d256_bf16(), family##_d256_fp16()
RUSHES_CUDA_KERNELS(mma);   // sm_80 and newer
RUSHES_CUDA_KERNELS(sm90);  // sm_90a
#undef RUSHES_CUDA_KERNELS

}  // namespace rushes::cuda
