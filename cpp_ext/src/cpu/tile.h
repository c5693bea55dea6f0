// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// One query tile against a list of key strips, for every instruction set: attention as in FlashAttention-2
// (arXiv:2307.08691, algorithm 1), on packed keys and values.
//
// Strategy   A tile's queries (up to tile_rows) stay in cache; blocks of kBlockStrips strips pass by. For each block:
//            scores = q k^T, row maxima, exp2, sums = weights v. Sums are rescaled only when a row's maximum grows by
//            more than 2^8 (FlashAttention-4's idea): float32 holds the difference.
// Layout     Everything packed is in 32-bit words: one float32, or two bfloat16 that are neighbours along the dimension
//            that a product sums over. k strip: [strip_keys / 16][depth words][16 keys]. v strip, by panels of
//            kPanelVectors x 16 channels (the last may be narrower): [panel][key words][channels of the panel].
// Products   An Engine multiplies `rows` rows with a block: engine_vector.h holds registers of rows x strips,
//            amx_bf16.cpp uses tiles. Both see the same layout, and a new one needs nothing else.
// Tails      Keys that a strip lacks are zeros and get the score -inf; channels are padded with zeros.
// Limits     head_dim 8 ... 256 in steps of 8. Float32 numbers under 2^-126 count as zero on x86 (driver.cpp says why).
// Not here   Masks, dropout, gradients. Splitting a row's keys over threads: bits would depend on how many there are.
//
// All of it is in an unnamed namespace, and nothing of std:: is used: each includer has other compiler flags, and the
// linker may keep any one copy of an inline function with a shared name.
#pragma once

#include <math.h>

#include <cstring>

#include "kernel_table.h"
#include "pack.h"

#if defined(__GNUC__)
#define RUSHES_INLINE inline __attribute__((always_inline))
#else
#define RUSHES_INLINE __forceinline
#endif
#if defined(__GNUC__) && !defined(__clang__)
#define RUSHES_UNROLL _Pragma("GCC unroll 16")  // the sums of a step only stay in registers when no loop is left
#else
#define RUSHES_UNROLL
#endif

namespace rushes::cpu {
namespace {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kRescaleAbove = 8.0f;  // in powers of two

// 2^x on [0, 1), minimax in relative error: 2e-9 for float32 weights; 7.5e-5, a fiftieth of a rounding, for bfloat16.
template <class V, bool kFine>
RUSHES_INLINE typename V::F exp2_of(typename V::F x) {
    return V::exp2(x, [](typename V::F r) {
        if constexpr (kFine) {
            typename V::F p = V::fma(r, V::set(0.000217022549f), V::set(0.00124396873f));
            p = V::fma(r, p, V::set(0.00967884064f));
            p = V::fma(r, p, V::set(0.0554833412f));
            p = V::fma(r, p, V::set(0.24022983f));
            p = V::fma(r, p, V::set(0.693147004f));
            return V::fma(r, p, V::set(1.0f));
        } else {
            typename V::F p = V::fma(r, V::set(0.0780245215f), V::set(0.226067156f));
            p = V::fma(r, p, V::set(0.695833564f));
            return V::fma(r, p, V::set(0.999925196f));
        }
    });
}

// Running state of a tile's rows and where its pieces lie in the thread's scratch memory.
struct Work {
    Word* q;         // [rows][depth words]
    float* sums;     // [rows][channels, padded to 16]
    float* maxima;   // [rows], times scale and log2(e)
    float* weights;  // [rows], sum of the weights
    float* scores;   // [group rows][block keys]
    Word* p;         // [group rows][key words]; the scores themselves for float32
    float* row;      // one row in float32
};

template <class E>
struct Tile {
    using V = typename E::Vector;
    static constexpr std::int64_t kBlockKeys = E::kBlockStrips * E::kStripKeys;
    // Rows one cache line longer than the block: at a power of two they would share a few sets of the cache.
    static constexpr std::int64_t kScoreRow = kBlockKeys + 16;
    static constexpr std::int64_t kWeightRow = E::kPair == 1 ? kScoreRow : kBlockKeys / 2 + 16;
    static constexpr std::int64_t kGroup = E::kGroupRows < E::kTileRows ? E::kGroupRows : E::kTileRows;

    static std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

    static std::size_t carve(char* base, std::int64_t head_dim, Work& w) {
        const std::size_t depth = Layout<E>::depth_words(head_dim), channels = Layout<E>::channels(head_dim);
        std::size_t at = 0;
        const auto take = [&](std::size_t words) {
            char* p = base ? base + at : nullptr;
            at += aligned(words * 4);
            return p;
        };
        w.q = reinterpret_cast<Word*>(take(E::kTileRows * depth));
        w.sums = reinterpret_cast<float*>(take(E::kTileRows * channels));
        w.maxima = reinterpret_cast<float*>(take(E::kTileRows));
        w.weights = reinterpret_cast<float*>(take(E::kTileRows));
        w.scores = reinterpret_cast<float*>(take(kGroup * kScoreRow));
        w.p = E::kPair == 1 ? reinterpret_cast<Word*>(w.scores)
                            : reinterpret_cast<Word*>(take(kGroup * kWeightRow));
        w.row = reinterpret_cast<float*>(take(Layout<E>::row_words(head_dim)));
        return at;
    }

    static std::size_t scratch_bytes(std::int64_t head_dim) {
        Work w;
        const std::size_t tile = carve(nullptr, head_dim, w), pack = Layout<E>::pack_scratch_bytes(head_dim);
        return tile > pack ? tile : pack;
    }

    static void mask_tails(const StripRef* strips, std::int64_t count, std::int64_t rows, float* scores) {
        for (std::int64_t s = 0; s < count; ++s)
            for (std::int64_t r = 0; strips[s].valid < E::kStripKeys && r < rows; ++r)
                for (std::int64_t j = strips[s].valid; j < E::kStripKeys; ++j)
                    scores[r * kScoreRow + s * E::kStripKeys + j] = -INFINITY;
    }

    // Scores of one row to weights, with its running maximum and sum; scales its sums when the maximum has moved far.
    static RUSHES_INLINE void soften(const float* scores, std::int64_t keys, Word* p, float factor, bool first,
                                     std::int64_t channels, float& maximum, float& weight, float* sums) {
        using F = typename V::F;
        F high = V::load(scores), high2 = high;
        std::int64_t j = 16;
        for (; j + 16 < keys; j += 32) {
            high = V::max(high, V::load(scores + j));
            high2 = V::max(high2, V::load(scores + j + 16));
        }
        if (j < keys) high = V::max(high, V::load(scores + j));
        const float top = V::horizontal_max(V::max(high, high2)) * factor;
        if (first) {
            maximum = top;
            weight = 0.0f;
        } else if (top > maximum + kRescaleAbove) {
            float one[16];
            V::store(one, exp2_of<V, true>(V::set(maximum - top)));
            const F shrink = V::set(one[0]);
            for (std::int64_t c = 0; c < channels; c += 16) V::store(sums + c, V::multiply(V::load(sums + c), shrink));
            weight *= one[0];
            maximum = top;
        }
        const F scale = V::set(factor), offset = V::set(-maximum);
        F total = V::zero(), total2 = V::zero();
        j = 0;
        for (; j + 32 <= keys; j += 32) {
            const F a = exp2_of<V, E::kPair == 1>(V::fma(V::load(scores + j), scale, offset));
            const F b = exp2_of<V, E::kPair == 1>(V::fma(V::load(scores + j + 16), scale, offset));
            total = V::add(total, a);
            total2 = V::add(total2, b);
            E::store_weights(p, j, a, b);
        }
        if (j < keys) {
            const F a = exp2_of<V, E::kPair == 1>(V::fma(V::load(scores + j), scale, offset));
            total = V::add(total, a);
            E::store_weights(p, j, a);
        }
        weight += V::horizontal_sum(V::add(total, total2));
    }

    static void block(const TileTask& t, const Work& w, float factor, const StripRef* strips, std::int64_t count,
                      bool first) {
        const std::int64_t depth = Layout<E>::depth_words(t.head_dim), channels = Layout<E>::channels(t.head_dim);
        const std::int64_t keys = count * E::kStripKeys;
        const Word *k[E::kBlockStrips], *v[E::kBlockStrips];
        for (std::int64_t s = 0; s < count; ++s) {
            k[s] = t.packed_k + strips[s].index * static_cast<std::int64_t>(Layout<E>::k_strip_words(t.head_dim));
            v[s] = t.packed_v + strips[s].index * static_cast<std::int64_t>(Layout<E>::v_strip_words(t.head_dim));
        }
        for (std::int64_t r0 = 0; r0 < t.rows; r0 += kGroup) {
            const std::int64_t rows = t.rows - r0 < kGroup ? t.rows - r0 : kGroup;
            E::multiply_keys(w.q + r0 * depth, depth, rows, k, count, w.scores, kScoreRow);
            mask_tails(strips, count, rows, w.scores);
            for (std::int64_t r = 0; r < rows; ++r)
                soften(w.scores + r * kScoreRow, keys, w.p + r * kWeightRow, factor, first, channels,
                       w.maxima[r0 + r], w.weights[r0 + r], w.sums + (r0 + r) * channels);
            E::multiply_values(w.p, kWeightRow, rows, v, count, w.sums + r0 * channels, channels, first);
        }
    }

    static void tile(const TileTask& t, void* scratch) {
        Work w;
        carve(static_cast<char*>(scratch), t.head_dim, w);
        const std::int64_t depth = Layout<E>::depth_words(t.head_dim), channels = Layout<E>::channels(t.head_dim);
        // A negative scale turns the largest score into the smallest, so its sign goes into q. Zero would make NaN of
        // the -inf of the tails; the smallest factor gives the same weights.
        float factor = (t.scale < 0 ? -t.scale : t.scale) * kLog2E;
        if (!(factor > 1e-37f)) factor = 1e-37f;
        for (std::int64_t r = 0; r < t.rows; ++r) {
            load_row<V>(t.dtype, t.q, r * t.q_token, t.q_channel, t.head_dim, w.row);
            if (t.scale < 0)
                for (std::int64_t c = 0; c < t.head_dim; ++c) w.row[c] = -w.row[c];
            Layout<E>::pad_row(w.row, t.head_dim);
            Layout<E>::to_words(w.row, w.q + r * depth, t.head_dim);
        }
        // engines round the number of rows up; what lies there is computed and never read, but must not be slow NaN
        const std::int64_t padded = (t.rows + E::kRowMultiple - 1) / E::kRowMultiple * E::kRowMultiple;
        std::memset(w.q + t.rows * depth, 0, static_cast<std::size_t>((padded - t.rows) * depth) * sizeof(Word));

        for (std::int64_t s = 0; s < t.strip_count; s += E::kBlockStrips) {
            const std::int64_t left = t.strip_count - s;
            block(t, w, factor, t.strips + s, left < E::kBlockStrips ? left : E::kBlockStrips, s == 0);
        }
        for (std::int64_t r = 0; r < t.rows; ++r) {
            const typename V::F inverse = V::set(1.0f / w.weights[r]);
            float* sums = w.sums + r * channels;
            for (std::int64_t c = 0; c < channels; c += 16) V::store(sums + c, V::multiply(V::load(sums + c), inverse));
            store_row<V>(t.dtype, t.out, r * t.out_token, t.out_channel, t.head_dim, sums);
        }
    }

    static const KernelTable* table() {
        static const KernelTable kTable = {
            E::kName,
            E::kStripKeys,
            E::kTileRows,
            E::kRowMultiple,
            1,
            1,
            [](std::int64_t d) { return static_cast<std::size_t>(Layout<E>::k_strip_words(d)); },
            [](std::int64_t d) { return static_cast<std::size_t>(Layout<E>::v_strip_words(d)); },
            &scratch_bytes,
            nullptr,
            &Layout<E>::pack,
            &tile,
            &E::enter,
            &E::leave,
        };
        return &kTable;
    }
};

}  // namespace
}  // namespace rushes::cpu
