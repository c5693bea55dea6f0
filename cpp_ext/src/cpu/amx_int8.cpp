// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Scores by int8 (SageAttention, arXiv:2410.02367): the mean key is taken from every key, which moves all scores of a
// query by the same number and so changes no weight; each query and key is then scaled to -127 ... 127 by its largest
// channel. Values stay bfloat16.
#include "amx_tile.h"

namespace rushes::cpu {
namespace {

struct Int8Product {
    static RUSHES_INLINE void ac() { _tile_dpbssd(0, 4, 6); }
    static RUSHES_INLINE void ad() { _tile_dpbssd(1, 4, 7); }
    static RUSHES_INLINE void bc() { _tile_dpbssd(2, 5, 6); }
    static RUSHES_INLINE void bd() { _tile_dpbssd(3, 5, 7); }
};

// Writes the row's chunks of 64 to `to`, `stride` bytes apart, and returns its scale: the largest channel / 127. A row
// that holds NaN or infinity gets the scale NaN, which its scores keep.
float quantise(const AmxRows& rows, std::int64_t row, const float* mean, std::int64_t chunks, char* to,
               std::int64_t stride) {
    alignas(64) float line[256];
    __m512 largest = _mm512_setzero_ps(), broken = _mm512_setzero_ps();
    for (std::int64_t c = 0; c < chunks * 64; c += 16) {
        __m512 x = rows.floats(row, c);
        if (mean && c < rows.channels) {
            const std::int64_t left = rows.channels - c;
            const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
            x = _mm512_sub_ps(x, _mm512_maskz_loadu_ps(mask, mean + c));
        }
        largest = _mm512_max_ps(_mm512_abs_ps(x), largest);
        broken = _mm512_fmadd_ps(x, _mm512_setzero_ps(), broken);
        _mm512_store_ps(line + c, x);
    }
    const float most = _mm512_reduce_max_ps(largest);
    const __m512 inverse = _mm512_set1_ps(most > 1e-30f ? 127.0f / most : 0.0f);
    for (std::int64_t c = 0; c < chunks * 64; c += 16) {
        const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(line + c), inverse));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + c / 64 * stride + c % 64), _mm512_cvtsepi32_epi8(whole));
    }
    return (most > 1e-30f ? most / 127.0f : 1.0f) + _mm512_reduce_add_ps(broken);
}

struct Int8Scores {
    static constexpr const char* kName = "amx_int8";
    static constexpr std::int64_t kChunk = 64, kScaleWords = kStripKeys;
    using Product = Int8Product;

    static RUSHES_INLINE __m512 score(const float* p, const float* scale) {
        return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(p)), _mm512_set1_ps(*scale));
    }
    // A missing key has an infinite scale: -inf together.
    static RUSHES_INLINE void store_nothing(float* p) { _mm512_storeu_si512(p, _mm512_set1_epi32(-1)); }
    static const float* scales(const Word* strip, std::int64_t chunks) {
        return reinterpret_cast<const float*>(strip + chunks * 2 * kTileWords);
    }

    static void pack_queries(const TileTask& t, std::int64_t first, std::int64_t count, std::int64_t chunks,
                             float factor, Word* q, float* factors) {
        const AmxRows rows = {t.dtype, t.q, t.q_token, t.q_channel, t.head_dim};
        alignas(64) char lines[4][16][64];
        for (std::int64_t half = 0; half < 2; ++half) {
            std::memset(lines, 0, sizeof lines);
            for (std::int64_t i = 0; i < 16; ++i) {
                const std::int64_t row = half * 16 + i;
                const float scale = row < count ? quantise(rows, first + row, nullptr, chunks, lines[0][i],
                                                           sizeof lines[0])
                                                : 1.0f;
                const float used = scale * factor;
                factors[row] = used < 1e-37f ? 1e-37f : used;  // NaN stays
            }
            for (std::int64_t c = 0; c < chunks; ++c) {
                __m512i r[16];
                for (int i = 0; i < 16; ++i) {
                    r[i] = _mm512_load_si512(lines[c][i]);
                    if (t.scale < 0) r[i] = _mm512_sub_epi8(_mm512_setzero_si512(), r[i]);
                }
                transpose(r);
                store_word_rows(q + (c * 2 + half) * kTileWords, r);
            }
        }
    }

    static void pack_keys(const AmxRows& k, const PackTask& t, std::int64_t chunks) {
        float* scales = reinterpret_cast<float*>(t.packed_k + chunks * 2 * kTileWords);
        for (std::int64_t key = 0; key < kStripKeys; ++key) {
            char* to = reinterpret_cast<char*>(t.packed_k + key / 16 * kTileWords + key % 16 * 16);
            if (key < t.valid) {
                scales[key] = quantise(k, key, t.k_mean, chunks, to, 2 * kTileWords * 4);
            } else {
                scales[key] = INFINITY;
                for (std::int64_t c = 0; c < chunks; ++c)
                    _mm512_storeu_si512(to + c * 2 * kTileWords * 4, _mm512_setzero_si512());
            }
        }
    }

    static void sum_keys(const PackTask& t, float* sums) {
        const AmxRows k = {t.dtype, t.k, t.k_token, t.k_channel, t.head_dim};
        for (std::int64_t c = 0; c < t.head_dim; c += 16) {
            __m512 sum = _mm512_setzero_ps();
            for (std::int64_t key = 0; key < t.valid; ++key) sum = _mm512_add_ps(sum, k.floats(key, c));
            const std::int64_t left = t.head_dim - c;
            const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
            _mm512_mask_storeu_ps(sums + c, mask, sum);
        }
    }
    static constexpr void (*kSumKeys)(const PackTask&, float*) = &sum_keys;
};

}  // namespace

const KernelTable* amx_int8_table() noexcept { return AmxTile<Int8Scores>::table(); }

}  // namespace rushes::cpu
