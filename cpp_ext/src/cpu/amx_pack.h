// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Rows to and from the 16 x 64-byte tiles of AMX. All layouts are lists of whole tiles, 1 KiB each:
//   k strip  [chunks of 64 bytes of depth][2 halves of 16 keys], a row of a tile is a key
//   v strip  [blocks of 16 channels], a row is a channel, its 32 columns are the keys
//   q group  [chunks of depth][2 halves of 16 queries], a row is 4 bytes of depth, its 16 columns are the queries
//   sums     [blocks of 16 channels][2 halves of 16 queries], a row is a channel, float32
#pragma once

#include "pack.h"
#include "tile.h"
#include "vector_avx512.h"

namespace rushes::cpu {
namespace {

constexpr std::int64_t kStripKeys = 32, kTileWords = 256;

struct AmxRows {
    Dtype dtype;
    const void* base;
    std::int64_t token, channel;  // strides in elements
    std::int64_t channels;

    // Channels c ... c + 15 of a row as float32, zeros past the last.
    RUSHES_INLINE __m512 floats(std::int64_t row, std::int64_t c) const {
        const std::int64_t left = channels - c;
        if (left <= 0) return _mm512_setzero_ps();
        const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
        const std::int64_t offset = row * token + c * channel;
        if (dtype == Dtype::kFloat32) {
            const float* p = static_cast<const float*>(base) + offset;
            if (channel == 1) return _mm512_maskz_loadu_ps(mask, p);
            alignas(64) float some[16] = {};
            for (std::int64_t i = 0; i < 16 && i < left; ++i) some[i] = p[i * channel];
            return _mm512_load_ps(some);
        }
        const std::uint16_t* p = static_cast<const std::uint16_t*>(base) + offset;
        __m256i half;
        if (channel == 1) {
            half = _mm256_maskz_loadu_epi16(mask, p);
        } else {
            alignas(32) std::uint16_t some[16] = {};
            for (std::int64_t i = 0; i < 16 && i < left; ++i) some[i] = p[i * channel];
            half = _mm256_load_si256(reinterpret_cast<const __m256i*>(some));
        }
        if (dtype == Dtype::kFloat16) return _mm512_cvtph_ps(half);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }

    // Channels c ... c + 31 as bfloat16.
    RUSHES_INLINE __m512i pairs(std::int64_t row, std::int64_t c) const {
        if (dtype == Dtype::kBFloat16 && channel == 1) {
            const std::int64_t left = channels - c;
            const __mmask32 mask = left >= 32 ? 0xffffffffu : left <= 0 ? 0u : (1u << left) - 1;
            return _mm512_maskz_loadu_epi16(mask, static_cast<const std::uint16_t*>(base) + row * token + c);
        }
        return (__m512i)_mm512_cvtne2ps_pbh(floats(row, c + 16), floats(row, c));
    }
};

// r[j] word i = r[i] word j
RUSHES_INLINE void transpose(__m512i (&r)[16]) {
    __m512i t[16];
    RUSHES_UNROLL
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    RUSHES_UNROLL
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    RUSHES_UNROLL
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    RUSHES_UNROLL
    for (int i = 0; i < 8; ++i) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

RUSHES_INLINE void store_word_rows(Word* tile, const __m512i (&r)[16]) {
    RUSHES_UNROLL
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(tile + i * 16, r[i]);
}

// Two tiles of values: channels c ... c + 31 of the strip.
inline void pack_values(const AmxRows& v, std::int64_t valid, std::int64_t c, Word* target) {
    __m512i low[16], high[16];  // word: two keys of one channel; channels 0-3, 8-11, ... and 4-7, 12-15, ...
    for (int i = 0; i < 16; ++i) {
        const __m512i a = 2 * i < valid ? v.pairs(2 * i, c) : _mm512_setzero_si512();
        const __m512i b = 2 * i + 1 < valid ? v.pairs(2 * i + 1, c) : _mm512_setzero_si512();
        low[i] = _mm512_unpacklo_epi16(a, b);
        high[i] = _mm512_unpackhi_epi16(a, b);
    }
    transpose(low);
    transpose(high);
    for (int i = 0; i < 16; ++i) {
        const int channel = i / 4 * 8 + i % 4;
        _mm512_storeu_si512(target + channel * 16, low[i]);
        _mm512_storeu_si512(target + (channel + 4) * 16, high[i]);
    }
}

// One tile of sums, divided by the sums of weights, to 16 rows of the output.
inline void store_outputs(const float* tile, __m512 inverse, std::int64_t rows, const TileTask& t, std::int64_t row,
                          std::int64_t c) {
    __m512i r[16];
    for (int i = 0; i < 16; ++i)
        r[i] = _mm512_castps_si512(_mm512_mul_ps(_mm512_loadu_ps(tile + i * 16), inverse));
    transpose(r);
    const std::int64_t channels = t.head_dim - c < 16 ? t.head_dim - c : 16;
    alignas(64) float line[16];
    for (std::int64_t i = 0; i < rows; ++i) {
        const std::int64_t offset = (row + i) * t.out_token + c * t.out_channel;
        if (t.dtype == Dtype::kBFloat16 && t.out_channel == 1 && channels == 16) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<std::uint16_t*>(t.out) + offset),
                                (__m256i)_mm512_cvtneps_pbh(_mm512_castsi512_ps(r[i])));
            continue;
        }
        _mm512_store_si512(line, r[i]);
        store_row<Avx512>(t.dtype, t.out, offset, t.out_channel, channels, line);
    }
}

}  // namespace
}  // namespace rushes::cpu
