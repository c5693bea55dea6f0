// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Sixteen floats in two AVX registers. Needs AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace rushes::cpu {
namespace {

struct Avx2 {
    struct F {
        __m256 a, b;
    };

    static F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static F set(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
    static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static void store(float* p, F x) {
        _mm256_storeu_ps(p, x.a);
        _mm256_storeu_ps(p + 8, x.b);
    }
    static F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
    static F multiply(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
    static F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
    static F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
    static float horizontal_max(F x) {
        const __m256 m = _mm256_max_ps(x.a, x.b);
        __m128 q = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
        q = _mm_max_ps(q, _mm_movehl_ps(q, q));
        return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
    }
    static float horizontal_sum(F x) {
        const __m256 m = _mm256_add_ps(x.a, x.b);
        __m128 q = _mm_add_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
        q = _mm_add_ps(q, _mm_movehl_ps(q, q));
        return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
    }
    static __m256 clamp(__m256 x) {  // max and min return their second argument for NaN, so NaN stays
        return _mm256_min_ps(_mm256_set1_ps(127.0f), _mm256_max_ps(_mm256_set1_ps(-127.0f), x));
    }
    static __m256 power(__m256 n) {  // 2^n for whole n in -127 ... 127; -127 gives zero
        return _mm256_castsi256_ps(
            _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
    }
    template <class Polynomial>
    static F exp2(F x, Polynomial polynomial) {
        x = {clamp(x.a), clamp(x.b)};
        const F n = {_mm256_floor_ps(x.a), _mm256_floor_ps(x.b)};
        const F p = polynomial(F{_mm256_sub_ps(x.a, n.a), _mm256_sub_ps(x.b, n.b)});
        return multiply(p, F{power(n.a), power(n.b)});
    }

    static __m256 widen_bf16(const std::uint16_t* p) {
        const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
    }
    static F load_bf16(const std::uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
    static F load_f16(const std::uint16_t* p) {
        return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
                _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
    }
    static __m256i round_bf16(__m256 x) {
        const __m256i bits = _mm256_castps_si256(x);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
        const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    }
    static void store_bf16(std::uint16_t* p, F x) {
        // packus works within 128-bit halves, the permutation puts its quarters in order
        const __m256i packed = _mm256_packus_epi32(round_bf16(x.a), round_bf16(x.b));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
    }
    static void store_f16(std::uint16_t* p, F x) {
        constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, kMode));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.b, kMode));
    }

    // target[j][i] = source[i][j], 16 x 16 words
    static void transpose(const std::uint32_t* source, std::int64_t stride, std::uint32_t* target) {
        const __m256i step = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                                                _mm256_set1_epi32(static_cast<int>(stride)));
        for (int j = 0; j < 16; ++j)
            for (int half = 0; half < 2; ++half) {
                const int* base = reinterpret_cast<const int*>(source + half * 8 * stride + j);
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + j * 16 + half * 8),
                                    _mm256_i32gather_epi32(base, step, 4));
            }
    }
    static void enter() {}
    static void leave() {}
};

}  // namespace
}  // namespace rushes::cpu
