// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#include "amx_tile.h"

namespace rushes::cpu {
namespace {

struct Bf16Scores {
    static constexpr const char* kName = "amx_bf16";
    static constexpr std::int64_t kChunk = 32, kScaleWords = 0;
    static constexpr void (*kSumKeys)(const PackTask&, float*) = nullptr;

    using Product = Bf16Product;

    static RUSHES_INLINE __m512 score(const float* p, const float*) { return _mm512_loadu_ps(p); }
    static RUSHES_INLINE void store_nothing(float* p) { _mm512_storeu_ps(p, _mm512_set1_ps(-INFINITY)); }
    static const float* scales(const Word*, std::int64_t) { return nullptr; }

    // A negative scale turns the largest score into the smallest, so its sign goes into q.
    static void pack_queries(const TileTask& t, std::int64_t first, std::int64_t count, std::int64_t chunks,
                             float factor, Word* q, float* factors) {
        const AmxRows rows = {t.dtype, t.q, t.q_token, t.q_channel, t.head_dim};
        const __m512i sign = _mm512_set1_epi16(t.scale < 0 ? -0x8000 : 0);
        for (std::int64_t half = 0; half * 16 < count; ++half)
            for (std::int64_t c = 0; c < chunks; ++c) {
                __m512i r[16];
                for (std::int64_t i = 0; i < 16; ++i) {
                    const std::int64_t row = half * 16 + i;
                    r[i] = row < count ? _mm512_xor_si512(rows.pairs(first + row, c * 32), sign)
                                       : _mm512_setzero_si512();
                }
                transpose(r);
                store_word_rows(q + (c * 2 + half) * kTileWords, r);
            }
        for (int row = 0; row < 32; ++row) factors[row] = factor;
    }

    static void pack_keys(const AmxRows& k, const PackTask& t, std::int64_t chunks) {
        for (std::int64_t key = 0; key < kStripKeys; ++key)
            for (std::int64_t c = 0; c < chunks; ++c)
                _mm512_storeu_si512(t.packed_k + (c * 2 + key / 16) * kTileWords + key % 16 * 16,
                                    key < t.valid ? k.pairs(key, c * 32) : _mm512_setzero_si512());
    }
};

}  // namespace

const KernelTable* amx_bf16_table() noexcept { return AmxTile<Bf16Scores>::table(); }

}  // namespace rushes::cpu
