// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Attention, dense and tile-sparse: out = softmax(q k^T * scale) v over [batch, heads, length, head_dim].
// Plain structs of pointers and numbers; no exception leaves these functions. Strides are in elements and may be any.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rushes {

enum class Dtype : std::int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// What the products are computed in; sums are float32 always. kNatural: bfloat16 where the inputs are bfloat16 and the
// processor multiplies it, float32 otherwise. kInt8: scores from int8, after SageAttention (arXiv:2410.02367): keys less
// their mean over all tokens, one scale for each query and key; values by bfloat16.
enum class Precision : std::int32_t { kNatural = 0, kFloat32 = 1, kBFloat16 = 2, kInt8 = 3 };

enum class Isa : std::int32_t {
    kBest = 0,
    kPortable = 1,
    kAvx2 = 2,
    kAvx512 = 3,
    kAvx512Bf16 = 4,
    kAmxBf16 = 5,
    kAmxInt8 = 6
};

enum class Status : std::int32_t { kOk = 0, kInvalid = 1, kUnsupported = 2, kCancelled = 3, kNoMemory = 4 };

struct Tensor {
    void* data;               // not written through, except of `out`
    std::int64_t strides[4];  // batch, head, token, channel
};

// Tokens are sorted by tile: tile i of the queries holds tokens query_start[i] ... query_start[i + 1] - 1.
// Query tile i of list set s attends to the key tiles tiles[offsets[s * query_tiles + i] ... offsets[... + 1] - 1],
// at least one, in rising order.
struct TileLists {
    std::int64_t query_tiles;
    std::int64_t key_tiles;
    const std::int64_t* query_start;  // [query_tiles + 1]
    const std::int64_t* key_start;    // [key_tiles + 1]
    std::int64_t sets;                // 1 (all heads share), heads, or batch * heads
    const std::int64_t* offsets;      // [sets * query_tiles + 1]
    const std::int32_t* tiles;
};

struct Attention {
    std::int64_t batch, heads, length_q, length_k, head_dim;
    Dtype dtype;
    Precision precision;
    Isa isa;
    float scale;
    Tensor q, k, v, out;
    const TileLists* pattern;  // null: dense
    void* workspace;           // 64-byte aligned, attention_workspace_bytes() or more
    std::size_t workspace_bytes;
    std::int32_t threads;
    // Asked between tiles, by the calling thread alone; other than 0 stops the call, with `out` undefined. May be null.
    std::int32_t (*cancelled)(void* context);
    void* cancel_context;
};

// Bytes that attention_run needs for this problem, 0 when it is refused; reads neither data nor workspace.
std::size_t attention_workspace_bytes(const Attention& problem) noexcept;

Status attention_run(const Attention& problem) noexcept;

// The code that would compute it, such as "avx512"; null when it is refused.
const char* attention_backend(const Attention& problem) noexcept;

// One sentence on this thread's latest status other than kOk.
const char* attention_message() noexcept;

}  // namespace rushes
