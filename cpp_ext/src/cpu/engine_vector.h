// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Products by vector registers. A step holds Rows x Vectors sums of 16 in registers; per word of depth it loads
// `Vectors` vectors of the packed side and broadcasts one word of each row.
// Dot says what a word is: a float32, or two bfloat16.
#pragma once

#include "tile.h"

namespace rushes::cpu {
namespace {

// D supplies Vector, Packed (16 words), load_packed(), broadcast(), accumulate(), and the constants of the tiling.
template <class D>
struct VectorEngine : D {
    using V = typename D::Vector;
    using F = typename V::F;
    static constexpr std::int64_t kStripKeys = 16;
    static constexpr std::int64_t kRowMultiple = D::kRegisterRows;

    template <int kRows, int kVectors>
    static RUSHES_INLINE void steps(F (&sums)[kRows][kVectors], const Word* a, std::int64_t a_row,
                                    const Word* const* b, std::int64_t b_step, std::int64_t count) {
        for (std::int64_t i = 0; i < count; ++i) {
            typename D::Packed packed[kVectors];
            RUSHES_UNROLL
            for (int n = 0; n < kVectors; ++n) packed[n] = D::load_packed(b[n] + i * b_step);
            RUSHES_UNROLL
            for (int r = 0; r < kRows; ++r) {
                const typename D::Packed one = D::broadcast(a + r * a_row + i);
                RUSHES_UNROLL
                for (int n = 0; n < kVectors; ++n) sums[r][n] = D::accumulate(one, packed[n], sums[r][n]);
            }
        }
    }

    template <int kRows, int kVectors>
    static void keys_step(const Word* q, std::int64_t depth, const Word* const* k, float* scores, std::int64_t ld) {
        F sums[kRows][kVectors];
        RUSHES_UNROLL
        for (int r = 0; r < kRows; ++r)
            RUSHES_UNROLL
            for (int n = 0; n < kVectors; ++n) sums[r][n] = V::zero();
        steps<kRows, kVectors>(sums, q, depth, k, 16, depth);
        RUSHES_UNROLL
        for (int r = 0; r < kRows; ++r)
            RUSHES_UNROLL
            for (int n = 0; n < kVectors; ++n) V::store(scores + r * ld + n * 16, sums[r][n]);
    }

    // A block's sum starts at zero and is added at the end: thousands of keys one after another would lose more bits.
    template <int kRows, int kVectors>
    static void values_step(const Word* p, std::int64_t p_row, const Word* const* v, std::int64_t count,
                            std::int64_t offset, float* out, std::int64_t ld, bool first) {
        constexpr std::int64_t kKeyWords = kStripKeys / D::kPair;
        F sums[kRows][kVectors];
        RUSHES_UNROLL
        for (int r = 0; r < kRows; ++r)
            RUSHES_UNROLL
            for (int n = 0; n < kVectors; ++n) sums[r][n] = V::zero();
        for (std::int64_t s = 0; s < count; ++s) {
            const Word* panel[kVectors];
            RUSHES_UNROLL
            for (int n = 0; n < kVectors; ++n) panel[n] = v[s] + offset * kKeyWords + n * 16;
            steps<kRows, kVectors>(sums, p + s * kKeyWords, p_row, panel, kVectors * 16, kKeyWords);
        }
        RUSHES_UNROLL
        for (int r = 0; r < kRows; ++r)
            RUSHES_UNROLL
            for (int n = 0; n < kVectors; ++n) {
                float* target = out + r * ld + n * 16;
                V::store(target, first ? sums[r][n] : V::add(sums[r][n], V::load(target)));
            }
    }

    // Full register blocks of rows, then one narrower block for the rest.
    template <int kRows, int kVectors>
    static void keys_rows(const Word* q, std::int64_t depth, std::int64_t rows, const Word* const* k, float* scores,
                          std::int64_t ld) {
        for (; rows >= kRows; rows -= kRows, q += kRows * depth, scores += kRows * ld)
            keys_step<kRows, kVectors>(q, depth, k, scores, ld);
        if constexpr (kRows > 1)
            if (rows > 0) keys_rows<kRows - 1, kVectors>(q, depth, rows, k, scores, ld);
    }
    template <int kRows, int kVectors>
    static void values_rows(const Word* p, std::int64_t p_row, std::int64_t rows, const Word* const* v,
                            std::int64_t count, std::int64_t offset, float* out, std::int64_t ld, bool first) {
        for (; rows >= kRows; rows -= kRows, p += kRows * p_row, out += kRows * ld)
            values_step<kRows, kVectors>(p, p_row, v, count, offset, out, ld, first);
        if constexpr (kRows > 1)
            if (rows > 0) values_rows<kRows - 1, kVectors>(p, p_row, rows, v, count, offset, out, ld, first);
    }

    template <int kVectors>
    static void keys_strips(const Word* q, std::int64_t depth, std::int64_t rows, const Word* const* k,
                            std::int64_t count, float* scores, std::int64_t ld) {
        for (; count >= kVectors; count -= kVectors, k += kVectors, scores += kVectors * 16)
            keys_rows<D::kRegisterRows, kVectors>(q, depth, rows, k, scores, ld);
        if constexpr (kVectors > 1)
            if (count > 0) keys_strips<kVectors - 1>(q, depth, rows, k, count, scores, ld);
    }
    template <int kVectors>
    static void values_panels(const Word* p, std::int64_t p_row, std::int64_t rows, const Word* const* v,
                              std::int64_t count, std::int64_t offset, std::int64_t vectors, float* out,
                              std::int64_t ld, bool first) {
        for (; vectors >= kVectors; vectors -= kVectors, offset += kVectors * 16)
            values_rows<D::kRegisterRows, kVectors>(p, p_row, rows, v, count, offset, out + offset, ld, first);
        if constexpr (kVectors > 1)
            if (vectors > 0)
                values_panels<kVectors - 1>(p, p_row, rows, v, count, offset, vectors, out, ld, first);
    }

    // scores[r][s * 16 + j] = row r of q times key j of strip s
    static void multiply_keys(const Word* q, std::int64_t depth, std::int64_t rows, const Word* const* k,
                              std::int64_t count, float* scores, std::int64_t ld) {
        keys_strips<D::kKeyVectors>(q, depth, rows, k, count, scores, ld);
    }
    // sums[r][c] (+)= weights of row r times channel c of the strips' values
    static void multiply_values(const Word* p, std::int64_t p_row, std::int64_t rows, const Word* const* v,
                                std::int64_t count, float* sums, std::int64_t channels, bool first) {
        values_panels<D::kPanelVectors>(p, p_row, rows, v, count, 0, channels / 16, sums, channels, first);
    }
};

// A word is a float32.
template <class Vec>
struct SingleDot {
    using Vector = Vec;
    using F = typename Vec::F;
    using Packed = F;
    static constexpr std::int64_t kPair = 1, kDepthMultiple = 1;

    static RUSHES_INLINE Packed load_packed(const Word* p) { return Vec::load(reinterpret_cast<const float*>(p)); }
    static RUSHES_INLINE Packed broadcast(const Word* p) { return Vec::set(*reinterpret_cast<const float*>(p)); }
    static RUSHES_INLINE F accumulate(Packed a, Packed b, F sum) { return Vec::fma(a, b, sum); }
    static RUSHES_INLINE void store_weights(Word* p, std::int64_t j, F a) {
        Vec::store(reinterpret_cast<float*>(p) + j, a);
    }
    static RUSHES_INLINE void store_weights(Word* p, std::int64_t j, F a, F b) {
        store_weights(p, j, a);
        store_weights(p, j + 16, b);
    }
    static void enter() { Vec::enter(); }
    static void leave() { Vec::leave(); }
};

}  // namespace
}  // namespace rushes::cpu
