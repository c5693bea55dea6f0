// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Attention as in attention.h, on NVIDIA cards from compute capability 8.0 on. All data lies on the device, the structs
// themselves on the host. Nothing waits for the device and nothing is allocated: a call asks for kernels on the
// caller's stream and returns, and may be captured into a graph (after one call outside: the first loads the kernel).
#pragma once

#include "rushes/attention.h"

namespace rushes {

struct CudaAttention {
    std::int64_t batch, heads, length_q, length_k, head_dim;
    Dtype dtype;  // kBFloat16 or kFloat16; sums are float32
    float scale;
    Tensor q, k, v, out;       // channel stride 1, other strides multiples of 8 elements, 16-byte-aligned
    const TileLists* pattern;  // null: dense. Its arrays lie on the device; what they say is not checked
    std::int64_t most_query_rows;  // tokens of the largest query tile: decides speed only. Not read when dense
    void* workspace;               // on the device, 16-byte-aligned, cuda_attention_workspace_bytes() or more
    std::size_t workspace_bytes;
    std::int32_t device;
    void* stream;  // cudaStream_t
};

// Bytes that cuda_attention_run needs; none when dense. 0 also for what is refused. Reads no pointer but `pattern`.
std::size_t cuda_attention_workspace_bytes(const CudaAttention& problem) noexcept;

// Why it would be refused, as one sentence; null when it would not.
const char* cuda_attention_obstacle(const CudaAttention& problem) noexcept;

Status cuda_attention_run(const CudaAttention& problem) noexcept;

// One sentence on this thread's latest status other than kOk.
const char* cuda_attention_message() noexcept;

// The code that would compute it, such as "cuda wgmma 128x128"; null when it is refused.
const char* cuda_attention_backend(const CudaAttention& problem) noexcept;

// What this binary holds code for, such as "80;86;89;90a;100;120", and the version of the toolkit that made it.
const char* cuda_build_architectures() noexcept;
std::int32_t cuda_build_version() noexcept;  // 13000 for 13.0

}  // namespace rushes
