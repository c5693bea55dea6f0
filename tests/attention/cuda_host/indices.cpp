// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// layout.h's and key_steps.h's functions as tables, for tests/attention/test_cuda_schedule.py.
#include <initializer_list>

#include "key_steps.h"
#include "layout.h"

using namespace rushes::cuda;

namespace {

template <int D, int kRows>
void fill_offsets(std::int32_t* offset, std::int32_t* moved) {
    for (int row = 0; row < kRows; ++row)
        for (int chunk = 0; chunk < D / 8; ++chunk) {
            offset[row * (D / 8) + chunk] = Panels<D>::template offset<kRows>(row, chunk);
            const int start = Panels<D>::template offset<kRows>(row % 8, chunk % 2);
            moved[row * (D / 8) + chunk] = Panels<D>::template moved<kRows>(start, row / 8, chunk / 2);
        }
}

template <int D, int kRows>
void fill_descriptors(std::uint32_t address, std::uint64_t* out, std::int32_t* steps) {
    out[0] = k_major<D>(address);
    out[1] = n_major<D, kRows>(address);
    for (int i = 0; i < D / 16; ++i) steps[i] = k_step_bytes<D, kRows>(i);
    for (int i = 0; i < kRows / 16; ++i) steps[D / 16 + i] = n_step_bytes<D>(i);
}

struct Ranges {
    const TokenRange* range_;
    std::int32_t count_;
    std::int32_t count() const { return count_; }
    TokenRange range(std::int32_t i) const { return range_[i]; }
};

template <int kParts, int kPartKeys>
std::int64_t walk(Ranges source, std::int32_t* out) {
    KeySteps<kParts, kPartKeys> place;
    KeyStep<kParts> step;
    std::int64_t steps = 0;
    for (; place.next(source, step); ++steps)
        for (int part = 0; part < kParts; ++part) {
            *out++ = step.begin[part];
            *out++ = step.count[part];
        }
    return steps;
}

}  // namespace

extern "C" {

// Bytes in a tile of `rows` (64 or 128) x D, by row and 16-byte chunk: from offset(), and from moved().
void tile_offsets(int D, int rows, std::int32_t* offset, std::int32_t* moved) {
    if (D == 64) rows == 64 ? fill_offsets<64, 64>(offset, moved) : fill_offsets<64, 128>(offset, moved);
    if (D == 96) rows == 64 ? fill_offsets<96, 64>(offset, moved) : fill_offsets<96, 128>(offset, moved);
    if (D == 128) rows == 64 ? fill_offsets<128, 64>(offset, moved) : fill_offsets<128, 128>(offset, moved);
    if (D == 256) rows == 64 ? fill_offsets<256, 64>(offset, moved) : fill_offsets<256, 128>(offset, moved);
}

void descriptors(int D, int rows, std::uint32_t address, std::uint64_t* out, std::int32_t* steps) {
    if (D == 64 && rows == 128) fill_descriptors<64, 128>(address, out, steps);
    if (D == 96 && rows == 128) fill_descriptors<96, 128>(address, out, steps);
    if (D == 128 && rows == 128) fill_descriptors<128, 128>(address, out, steps);
    if (D == 256 && rows == 64) fill_descriptors<256, 64>(address, out, steps);
}

// begin, count of each part of each step; returns how many steps.
std::int64_t key_steps(int parts, int part_keys, const std::int32_t* ranges, std::int32_t count, std::int32_t* out) {
    const Ranges source{reinterpret_cast<const TokenRange*>(ranges), count};
    if (parts == 2 && part_keys == 64) return walk<2, 64>(source, out);
    if (parts == 1 && part_keys == 64) return walk<1, 64>(source, out);
    return walk<1, 32>(source, out);
}

// For each lane: row and column of the four elements of an accumulator, then row and k of the four registers of an A,
// k of the two of a B, its column, and row and chunk of the addresses for queries, keys and values.
void fragments(std::int32_t* out) {
    for (int lane = 0; lane < 32; ++lane) {
        for (int i = 0; i < 4; ++i) *out++ = accumulator_row(lane, i), *out++ = accumulator_column(lane, i);
        for (int r = 0; r < 4; ++r) *out++ = a_row(lane, r), *out++ = a_k(lane, r);
        for (int r = 0; r < 2; ++r) *out++ = b_k(lane, r);
        *out++ = b_column(lane);
        for (const RowChunk place : {query_address(lane), key_address(lane), value_address(lane)})
            *out++ = place.row, *out++ = place.chunk;
    }
}
}
