// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Words of two bfloat16: conversions and the dot product of AVX-512 BF16.
#pragma once

#include "tile.h"
#include "vector_avx512.h"

namespace rushes::cpu {
namespace {

struct PairDot {
    using Vector = Avx512;
    using F = __m512;
    using Packed = __m512bh;
    static constexpr std::int64_t kPair = 2;

    static RUSHES_INLINE Packed load_packed(const Word* p) { return (__m512bh)_mm512_loadu_si512(p); }
    static RUSHES_INLINE Packed broadcast(const Word* p) { return (__m512bh)_mm512_set1_epi32(static_cast<int>(*p)); }
    static RUSHES_INLINE F accumulate(Packed a, Packed b, F sum) { return _mm512_dpbf16_ps(sum, a, b); }
    static RUSHES_INLINE void store_weights(Word* p, std::int64_t j, F a) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + j / 2), (__m256i)_mm512_cvtneps_pbh(a));
    }
    static RUSHES_INLINE void store_weights(Word* p, std::int64_t j, F a, F b) {
        _mm512_storeu_si512(p + j / 2, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    }
    // word i = (first[i], second[i]), the first in the low half
    static RUSHES_INLINE void store_pairs(Word* p, F first, F second) {
        const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(first));
        const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(second));
        _mm512_storeu_si512(p, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
};

}  // namespace
}  // namespace rushes::cpu
