// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#include "tensor_maps.h"

namespace rushes::cuda {
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// Asked of the runtime, so that nothing links to the driver: a machine without one still loads this library.
Encode find_encode() noexcept {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
    const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(found) : nullptr;
}

bool encode(Encode call, CUtensorMap& map, const CudaAttention& a, const Tensor& t, std::int64_t length,
            int panel) noexcept {
    const std::int64_t sizes[4] = {a.head_dim, length, a.heads, a.batch};
    const std::int64_t strides[4] = {1, t.strides[2], t.strides[1], t.strides[0]};
    cuuint64_t dims[4], bytes[3];
    for (int i = 0; i < 4; ++i) {
        dims[i] = static_cast<cuuint64_t>(sizes[i]);
        // the stride of a dimension of one is never used, and may be anything in a tensor
        if (i > 0) bytes[i - 1] = static_cast<cuuint64_t>(sizes[i] == 1 ? a.head_dim : strides[i]) * 2;
    }
    const cuuint32_t box[4] = {static_cast<cuuint32_t>(panel), 64, 1, 1}, steps[4] = {1, 1, 1, 1};
    return call(&map,
                a.dtype == Dtype::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4,
                t.data, dims, bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                panel == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace

const char* make_maps(HostMaps& maps, const CudaAttention& a, int panel) noexcept {
    static const Encode call = find_encode();
    if (!call) return "the driver is too old for Hopper's tensor copy; version 525 or newer is needed";
    if (!encode(call, maps.q, a, a.q, a.length_q, panel)) return "q: the tensor copy refuses its strides";
    if (!encode(call, maps.k, a, a.k, a.length_k, panel)) return "k: the tensor copy refuses its strides";
    if (!encode(call, maps.v, a, a.v, a.length_k, panel)) return "v: the tensor copy refuses its strides";
    return nullptr;
}

}  // namespace rushes::cuda
