// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// What the driver and the code of each instruction set say to each other. Included with different compiler flags, so it
// holds no function: an inline one might reach an old processor in its newest form.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rushes/attention.h"

namespace rushes::cpu {

using Word = std::uint32_t;  // one float32, or two neighbouring bfloat16

// A strip: as many keys as one step of the products takes, packed; the last of a tile may hold fewer valid ones.
struct StripRef {
    std::int32_t index;
    std::int16_t valid;
    std::uint16_t parts;  // bit p: part p of the task attends to it
};

struct PackTask {
    Dtype dtype;
    std::int64_t head_dim;
    const void* k;  // first token of the strip, or null: keys were not asked for
    const void* v;
    std::int64_t k_token, k_channel, v_token, v_channel;  // strides
    std::int64_t valid;
    const float* k_mean;  // [head_dim], of all keys of the head; null unless the kernel has sum_keys
    Word* packed_k;
    Word* packed_v;
};

struct TileTask {
    Dtype dtype;
    std::int64_t head_dim;
    float scale;  // of the scores, log2(e) not yet in it
    const void* q;
    void* out;
    std::int64_t q_token, q_channel, out_token, out_channel;  // strides
    std::int64_t rows;
    const Word* packed_k;  // strip 0 of this head
    const Word* packed_v;
    const StripRef* strips;
    std::int64_t strip_count;       // 1 or more, for each part too
    const std::int32_t* part_rows;  // [parts]: the rows are those of one query tile after another, each with own strips
    std::int64_t parts;
};

struct KernelTable {
    const char* name;
    std::int64_t strip_keys;
    std::int64_t tile_rows;     // at most, of one TileTask
    std::int64_t row_multiple;  // that wastes nothing
    std::int64_t most_parts;     // of one TileTask
    std::int64_t part_multiple;  // rows that a part of several is filled up to
    std::size_t (*k_strip_words)(std::int64_t head_dim);
    std::size_t (*v_strip_words)(std::int64_t head_dim);
    std::size_t (*scratch_bytes)(std::int64_t head_dim);  // per thread, 64-byte aligned; shared by pack and tile
    void (*sum_keys)(const PackTask& task, float* sums);  // the task's keys to sums [head_dim]; null: not needed
    void (*pack)(const PackTask& task, void* scratch);
    void (*tile)(const TileTask& task, void* scratch);
    void (*enter)();  // before and after a thread's work: registers that outlast a call
    void (*leave)();
};

// Null where this build or this processor does not have it.
const KernelTable* portable_table() noexcept;
const KernelTable* avx2_table() noexcept;
const KernelTable* avx512_table() noexcept;
const KernelTable* avx512_bf16_table() noexcept;
const KernelTable* amx_bf16_table() noexcept;
const KernelTable* amx_int8_table() noexcept;

}  // namespace rushes::cpu
