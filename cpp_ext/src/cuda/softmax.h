// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// The softmax between the two products, on accumulators in registers, and the way out. mma.sync's accumulators of a
// warp and wgmma's look the same to a lane: it has two rows (lane / 4 and 8 more) and, of every eight columns, two.
#pragma once

#include "key_ranges.h"

namespace rushes::cuda {

// Sums are rescaled only when a row's maximum has grown by more than 2^8: float32 holds the difference, and weights up
// to 256 are as exact in bfloat16 and float16 as those up to 1. What a row does depends on no other row.
constexpr float kRescaleAbove = 8.0f;
constexpr float kMinusInfinity = -__builtin_huge_valf();

// Scores of columns that are no keys -> -infinity. count: keys in each part of kPartKeys columns.
template <int kColumns, int kParts>
RUSHES_DEVICE void mask_scores(float (&scores)[kColumns / 2], const std::int32_t (&count)[kParts], int lane) {
    constexpr int kPartKeys = kColumns / kParts;
    RUSHES_UNROLL
    for (int i = 0; i < kColumns / 2; ++i) {
        const int block = i / 4 * 8;  // of columns; blocks do not straddle parts, so the part is known when compiled
        if (block % kPartKeys + accumulator_column(lane, i % 4) >= count[block / kPartKeys]) scores[i] = kMinusInfinity;
    }
}

template <int kCount>
RUSHES_DEVICE void negate(float (&scores)[kCount]) {
    RUSHES_UNROLL
    for (int i = 0; i < kCount; ++i) scores[i] = -scores[i];
}

// A lane's two rows: maximum times scale and log2(e), as it was when the sums were last rescaled; the lane's share of
// the sum of weights.
struct RowState {
    float maximum[2] = {kMinusInfinity, kMinusInfinity};
    float weight[2] = {0.0f, 0.0f};
};

// Scores -> weights, in place. shrink: what each row's sums of values must be multiplied by before the next product;
// true when that is not 1 for some row of the warp. Each step has one key or more, so that a maximum is a number; at
// the first, 2^(-infinity) = 0 clears sums that are zero already.
template <int kCount>
RUSHES_DEVICE bool soften(float (&scores)[kCount], RowState& state, float factor, float (&shrink)[2]) {
    RUSHES_UNROLL
    for (int row = 0; row < 2; ++row) {
        float top = scores[2 * row];
        RUSHES_UNROLL
        for (int i = 0; i < kCount; i += 4) {
            top = fmaxf(top, scores[i + 2 * row]);
            top = fmaxf(top, scores[i + 2 * row + 1]);
        }
        top = fmaxf(top, ptx::shuffle_xor(top, 1));  // the four lanes of a row are neighbours
        top = fmaxf(top, ptx::shuffle_xor(top, 2)) * factor;
        shrink[row] = 1.0f;
        if (top > state.maximum[row] + kRescaleAbove) {
            shrink[row] = ptx::exp2(state.maximum[row] - top);
            state.maximum[row] = top;
        }
        const float offset = -state.maximum[row];
        float sum = 0.0f, sum2 = 0.0f;
        RUSHES_UNROLL
        for (int i = 2 * row; i < kCount; i += 4) {
            scores[i] = ptx::exp2(fmaf(scores[i], factor, offset));
            scores[i + 1] = ptx::exp2(fmaf(scores[i + 1], factor, offset));
            sum += scores[i];
            sum2 += scores[i + 1];
        }
        state.weight[row] = state.weight[row] * shrink[row] + (sum + sum2);
    }
    return ptx::any_of_warp(shrink[0] != 1.0f || shrink[1] != 1.0f);
}

template <int kCount>
RUSHES_DEVICE void rescale(float (&sums)[kCount], const float (&shrink)[2]) {
    RUSHES_UNROLL
    for (int i = 0; i < kCount; ++i) sums[i] *= shrink[i / 2 % 2];
}

// Weights of 16 keys, from column 16 * step on, as the A of the next product.
template <class T, int kCount>
RUSHES_DEVICE void pack_weights(std::uint32_t (&a)[4], const float (&weights)[kCount], int step) {
    RUSHES_UNROLL
    for (int r = 0; r < 4; ++r) {
        const int first = (2 * step + a_block(r)) * 4 + a_element(r);
        a[r] = ptx::pack<T>(weights[first], weights[first + 1]);
    }
}

// Four lanes with four words each: word w of lane l <-> word l of lane w.
RUSHES_DEVICE void transpose_quad(std::uint32_t (&word)[4], int lane) {
    RUSHES_UNROLL
    for (int bit = 1; bit < 4; bit *= 2) {
        const bool upper = (lane & bit) != 0;
        RUSHES_UNROLL
        for (int i = 0; i < 4; ++i) {
            if (i & bit) continue;
            const std::uint32_t got = ptx::shuffle_xor(upper ? word[i] : word[i | bit], bit);
            if (upper)
                word[i] = got;
            else
                word[i | bit] = got;
        }
    }
}

// sums / weights -> out, rows first_row + (0 ... 15) of the item. Four lanes hold two neighbours each of eight
// channels: exchanged over four such groups, each lane writes 16 bytes and the four together 64 in a row.
template <class T, int D>
RUSHES_DEVICE void store_rows(const float (&sums)[D / 2], const RowState& state, const Problem& p, const Item& item,
                              int first_row, int lane) {
    RUSHES_UNROLL
    for (int row = 0; row < 2; ++row) {
        float weight = state.weight[row];
        weight += ptx::shuffle_xor(weight, 1);
        weight += ptx::shuffle_xor(weight, 2);
        const float inverse = 1.0f / weight;
        const int at = first_row + accumulator_row(lane, 2 * row);
        char* to = token_address(p.out, p, item.group, item.token + at);
        RUSHES_UNROLL
        for (int group = 0; group < D / 32; ++group) {
            Words words;
            RUSHES_UNROLL
            for (int i = 0; i < 4; ++i) {
                const int first = (group * 4 + i) * 4 + 2 * row;
                words.word[i] = ptx::pack<T>(sums[first] * inverse, sums[first + 1] * inverse);
            }
            transpose_quad(words.word, lane);
            const int channel = (group * 4 + lane % 4) * 8;
            if (at < item.rows && channel < p.head_dim) ptx::store_words(to + channel * 2, words);
        }
    }
}

}  // namespace rushes::cuda
