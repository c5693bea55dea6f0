// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Rows of any dtype and stride to float32 and back, and strips of keys and values in the layout that tile.h describes.
#pragma once

#include <cstring>

#include "kernel_table.h"

namespace rushes::cpu {
namespace {

// One row of `channels` (a multiple of 8) at element `offset` to float32. Writes whole sixteens, for which
// target has room.
template <class V>
void load_row(Dtype dtype, const void* base, std::int64_t offset, std::int64_t stride, std::int64_t channels,
              float* target) {
    if (dtype == Dtype::kFloat32) {
        const float* source = static_cast<const float*>(base) + offset;
        if (stride == 1)
            std::memcpy(target, source, static_cast<std::size_t>(channels) * sizeof(float));
        else
            for (std::int64_t c = 0; c < channels; ++c) target[c] = source[c * stride];
        return;
    }
    const std::uint16_t* source = static_cast<const std::uint16_t*>(base) + offset;
    for (std::int64_t c = 0; c < channels; c += 16) {
        std::uint16_t some[16] = {};
        const std::uint16_t* from = source + c;
        if (stride != 1 || channels - c < 16) {  // never past the row's end: it may be the end of the memory
            for (std::int64_t i = 0; i < 16 && c + i < channels; ++i) some[i] = source[(c + i) * stride];
            from = some;
        }
        V::store(target + c, dtype == Dtype::kBFloat16 ? V::load_bf16(from) : V::load_f16(from));
    }
}

template <class V>
void store_row(Dtype dtype, void* base, std::int64_t offset, std::int64_t stride, std::int64_t channels,
               const float* source) {
    if (dtype == Dtype::kFloat32) {
        float* target = static_cast<float*>(base) + offset;
        if (stride == 1)
            std::memcpy(target, source, static_cast<std::size_t>(channels) * sizeof(float));
        else
            for (std::int64_t c = 0; c < channels; ++c) target[c * stride] = source[c];
        return;
    }
    std::uint16_t* target = static_cast<std::uint16_t*>(base) + offset;
    for (std::int64_t c = 0; c < channels; c += 16) {
        std::uint16_t some[16];
        const bool whole = stride == 1 && channels - c >= 16;
        std::uint16_t* to = whole ? target + c : some;
        if (dtype == Dtype::kBFloat16)
            V::store_bf16(to, V::load(source + c));
        else
            V::store_f16(to, V::load(source + c));
        for (std::int64_t i = 0; !whole && i < 16 && c + i < channels; ++i) target[(c + i) * stride] = some[i];
    }
}

template <class E>
struct Layout {
    using V = typename E::Vector;

    static std::int64_t round_up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }
    // Length of a row of q or k in words, and of v and the sums in channels.
    static std::int64_t depth_words(std::int64_t head_dim) { return round_up(head_dim, E::kDepthMultiple) / E::kPair; }
    static std::int64_t channels(std::int64_t head_dim) { return round_up(head_dim, 16); }
    static std::int64_t row_words(std::int64_t head_dim) {  // a float32 row that serves as either, in whole sixteens
        return round_up(round_up(head_dim, E::kDepthMultiple), 16);
    }
    static std::int64_t k_strip_words(std::int64_t head_dim) { return E::kStripKeys * depth_words(head_dim); }
    static std::int64_t v_strip_words(std::int64_t head_dim) { return E::kStripKeys / E::kPair * channels(head_dim); }

    static void pad_row(float* row, std::int64_t head_dim) {
        for (std::int64_t c = head_dim; c < row_words(head_dim); ++c) row[c] = 0.0f;
    }

    static void to_words(const float* row, Word* words, std::int64_t head_dim) {
        if constexpr (E::kPair == 1) {
            std::memcpy(words, row, static_cast<std::size_t>(depth_words(head_dim)) * sizeof(Word));
        } else {
            std::uint16_t* halves = reinterpret_cast<std::uint16_t*>(words);
            const std::int64_t length = depth_words(head_dim) * E::kPair;
            std::int64_t c = 0;
            for (; c + 16 <= length; c += 16) V::store_bf16(halves + c, V::load(row + c));
            if (c < length) {
                std::uint16_t some[16];
                V::store_bf16(some, V::load(row + c));
                std::memcpy(halves + c, some, static_cast<std::size_t>(length - c) * sizeof(std::uint16_t));
            }
        }
    }

    static std::size_t pack_scratch_bytes(std::int64_t head_dim) {
        return static_cast<std::size_t>((E::kStripKeys + 2) * row_words(head_dim)) * sizeof(float);
    }

    static void pack(const PackTask& t, void* scratch) {
        const std::int64_t width = row_words(t.head_dim);
        float* rows = static_cast<float*>(scratch);  // [strip keys][width] float32
        if (t.k) {
            load(t.dtype, t.k, t.k_token, t.k_channel, t, rows);
            pack_keys(rows, width, depth_words(t.head_dim), t);
        }
        if (t.v) {
            load(t.dtype, t.v, t.v_token, t.v_channel, t, rows);
            pack_values(rows, width, t);
        }
    }

    static void load(Dtype dtype, const void* base, std::int64_t token, std::int64_t channel, const PackTask& t,
                     float* rows) {
        const std::int64_t width = row_words(t.head_dim);
        for (std::int64_t key = 0; key < t.valid; ++key) {
            load_row<V>(dtype, base, key * token, channel, t.head_dim, rows + key * width);
            pad_row(rows + key * width, t.head_dim);
        }
        const std::int64_t missing = (E::kStripKeys - t.valid) * width;
        std::memset(rows + t.valid * width, 0, static_cast<std::size_t>(missing) * sizeof(float));
    }

    static void pack_keys(float* rows, std::int64_t width, std::int64_t depth, const PackTask& t) {
        // in place: a row's words are never longer than the row
        for (std::int64_t key = 0; E::kPair > 1 && key < E::kStripKeys; ++key)
            to_words(rows + key * width, reinterpret_cast<Word*>(rows + key * width), t.head_dim);
        const Word* words = reinterpret_cast<const Word*>(rows);
        for (std::int64_t part = 0; part < E::kStripKeys / 16; ++part) {
            Word* target = t.packed_k + part * depth * 16;
            const Word* source = words + part * 16 * width;
            std::int64_t c = 0;
            for (; c + 16 <= depth; c += 16) V::transpose(source + c, width, target + c * 16);
            for (; c < depth; ++c)
                for (std::int64_t key = 0; key < 16; ++key) target[c * 16 + key] = source[key * width + c];
        }
    }

    static void pack_values(const float* rows, std::int64_t width, const PackTask& t) {
        constexpr std::int64_t kKeyWords = E::kStripKeys / E::kPair, kPanel = E::kPanelVectors * 16;
        const std::int64_t total = channels(t.head_dim);
        for (std::int64_t c0 = 0; c0 < total; c0 += kPanel) {
            const std::int64_t panel = total - c0 < kPanel ? total - c0 : kPanel;
            Word* target = t.packed_v + c0 * kKeyWords;
            for (std::int64_t key = 0; key < kKeyWords; ++key)
                for (std::int64_t c = 0; c < panel; c += 16) {
                    const float* source = rows + key * E::kPair * width + c0 + c;
                    Word* to = target + key * panel + c;
                    if constexpr (E::kPair == 1)
                        std::memcpy(to, source, 16 * sizeof(Word));
                    else
                        E::store_pairs(to, V::load(source), V::load(source + width));
                }
        }
    }
};

}  // namespace
}  // namespace rushes::cpu
