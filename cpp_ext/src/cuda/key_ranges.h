// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// On the device: the item of a block, where its tokens lie, and its keys as a source of ranges (key_steps.h).
#pragma once

#include "key_steps.h"
#include "problem.h"
#include "ptx.h"

namespace rushes::cuda {

RUSHES_DEVICE char* token_address(const Tensor& t, const Problem& p, std::int32_t group, std::int64_t token) {
    return static_cast<char*>(t.data) +
           2 * (group / p.heads * t.strides[0] + group % p.heads * t.strides[1] + token * t.strides[2]);
}

RUSHES_DEVICE Item item_of_block(const Problem& p, int rows) {
    const std::int64_t block = ptx::block();
    if (p.items) return p.items[block];
    const std::int32_t group = static_cast<std::int32_t>(block / p.row_tiles);
    const std::int32_t token = static_cast<std::int32_t>(block % p.row_tiles) * rows, left = p.length_q - token;
    return {group, token, left < rows ? left : rows, 0};
}

// In shared memory: the list of an item, and 32 of its tiles as tokens.
struct KeyTable {
    TokenRange range[32];
    std::int64_t first;  // in lists.tiles
    std::int32_t count;
};

// The keys of an item as a source for KeySteps, for one whole warp: it reads 32 tiles at a time, one a lane, so that
// the three loads behind a tile are waited for once in 32 tiles. All lanes call together and get the same answers.
class KeyRanges {
public:
    RUSHES_DEVICE KeyRanges(const Problem& p, KeyTable& table) : p_(p), table_(table) {}

    // Once, before the first range.
    RUSHES_DEVICE void open(const Item& item) {
        const bool dense = !p_.lists.tiles;
        if (ptx::thread() % 32 == 0) {
            table_.first = dense ? 0 : p_.lists.offsets[item.list];
            table_.count =
                dense ? 1 : static_cast<std::int32_t>(p_.lists.offsets[item.list + 1] - p_.lists.offsets[item.list]);
        }
        ptx::barrier_of_warp();
    }
    RUSHES_DEVICE std::int32_t count() const { return table_.count; }
    RUSHES_DEVICE TokenRange range(std::int32_t i) {
        if (!p_.lists.tiles) return {0, p_.length_k};
        if (i % 32 == 0) {
            const int lane = ptx::thread() % 32;
            ptx::barrier_of_warp();  // all have read what is overwritten
            if (i + lane < table_.count) {
                const std::int32_t tile = p_.lists.tiles[table_.first + i + lane];
                table_.range[lane] = {static_cast<std::int32_t>(p_.lists.key_start[tile]),
                                      static_cast<std::int32_t>(p_.lists.key_start[tile + 1])};
            }
            ptx::barrier_of_warp();
        }
        return table_.range[i % 32];
    }

private:
    const Problem& p_;
    KeyTable& table_;
};

}  // namespace rushes::cuda
