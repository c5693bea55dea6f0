// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// What one thread block computes, and in which order blocks take it. For host and device.
//
// An item is up to kRows neighbouring queries of one batch and head that share a list of keys. Dense: cut in order. By
// lists: a query tile is cut into parts of kRows, and as nobody on the host may wait for the device to tell how many
// there are, each (batch, head) gets slots enough for any tiling: slot i < query_tiles is the first part of tile i, and
// slot query_tiles + k - 1 (k >= 1) is the further part that begins at a token in [k * kRows, (k + 1) * kRows), if
// there is one. There is at most one: further parts of a tile begin kRows apart, and one of tile i begins kRows or more
// after the start of tile i, which no earlier tile reaches.
// Items are sorted by the length of their list, longest first, in steps of a quarter of an octave; within a step they
// keep their order, in which neighbours share keys. Blocks start in the order of their numbers, so the long ones do not
// come last.
#pragma once

#include "layout.h"
#include "rushes/attention.h"

namespace rushes::cuda {

struct Item {
    std::int32_t group;  // batch * heads + head
    std::int32_t token;  // the first query
    std::int32_t rows;   // 0: an empty slot
    std::int32_t list;   // which of the lists, set * query_tiles + tile
};

constexpr int kBuckets = 64;

constexpr RUSHES_HD std::int64_t slots_per_group(std::int64_t query_tiles, std::int64_t length_q, int rows) {
    return query_tiles + (length_q - 1) / rows;
}

// The query tile that holds a token.
RUSHES_HD std::int64_t tile_of(const TileLists& lists, std::int64_t token) {
    std::int64_t low = 0, high = lists.query_tiles;  // query_start[low] <= token < query_start[high]
    while (high - low > 1) {
        const std::int64_t middle = (low + high) / 2;
        (lists.query_start[middle] <= token ? low : high) = middle;
    }
    return low;
}

RUSHES_HD Item item_of_slot(const TileLists& lists, std::int64_t group, std::int64_t slot, int rows) {
    std::int64_t tile = slot, first = 0;
    if (slot >= lists.query_tiles) {
        const std::int64_t token = (slot - lists.query_tiles + 1) * rows;
        tile = tile_of(lists, token);
        // the tile's first part that begins at `token` or after it; part 0 has a slot of its own
        first = (token - lists.query_start[tile] + rows - 1) / rows * rows;
        if (first == 0) first = lists.query_start[tile + 1] - lists.query_start[tile];
    }
    const std::int64_t begin = lists.query_start[tile] + first, left = lists.query_start[tile + 1] - begin;
    const std::int64_t count = left < 0 ? 0 : left < rows ? left : rows;
    return {static_cast<std::int32_t>(group), static_cast<std::int32_t>(begin), static_cast<std::int32_t>(count),
            static_cast<std::int32_t>(group % lists.sets * lists.query_tiles + tile)};
}

// 0 for the longest lists; the last bucket holds the empty slots.
RUSHES_HD int bucket_of(const TileLists& lists, const Item& item) {
    if (item.rows == 0) return kBuckets - 1;
    const std::int64_t length = lists.offsets[item.list + 1] - lists.offsets[item.list];
    int octave = 0;
    for (std::int64_t n = length; n > 1; n /= 2) ++octave;
    const int quarter = static_cast<int>(((length << 2) >> octave) & 3);
    const int rank = octave * 4 + quarter;  // rises with the length
    return rank > kBuckets - 2 ? 0 : kBuckets - 2 - rank;
}

}  // namespace rushes::cuda
