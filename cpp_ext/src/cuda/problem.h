// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// What the kernels are given. For host and device.
#pragma once

#include "work.h"

namespace rushes::cuda {

struct Problem {
    Tensor q, k, v, out;
    std::int32_t heads, length_q, length_k, head_dim;
    float factor;            // abs(scale) * log2(e), above zero
    bool is_negative;        // scale < 0: the scores change their sign
    TileLists lists;         // tiles is null: dense
    const Item* items;       // null: dense
    std::int32_t row_tiles;  // dense: items of each batch and head
};

// A negative scale turns the largest score into the smallest, so its sign goes into the scores. Zero would make NaN of
// the -infinity of absent keys; the smallest factor gives the same weights.
inline void set_scale(Problem& p, float scale) {
    const float factor = (scale < 0 ? -scale : scale) * 1.44269504088896340736f;
    p.is_negative = scale < 0;
    p.factor = factor > 1e-37f ? factor : 1e-37f;
}

// For plan.h.
struct Plan {
    TileLists lists;
    std::int64_t slots, slots_per_group;  // of all groups; of one
    std::int32_t rows, blocks;            // queries of an item; blocks of kSlots
    std::uint32_t* counts;                // [kBuckets][blocks]
    Item* items;                          // [slots]
};

constexpr int kSlots = 256;  // also the threads of each block

inline std::int64_t plan_blocks(std::int64_t slots) { return (slots + kSlots - 1) / kSlots; }

}  // namespace rushes::cuda
