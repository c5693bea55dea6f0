// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Sixteen floats in plain C++, for processors without a file of their own; compilers turn the loops into what is there.
#pragma once

#include <cstdint>
#include <cstring>

#define RUSHES_LOOP16 for (int i = 0; i < 16; ++i)

namespace rushes::cpu {
namespace {

struct Portable {
    struct F {
        float x[16];
    };

    static F zero() { return F{}; }
    static F set(float value) {
        F r;
        RUSHES_LOOP16 r.x[i] = value;
        return r;
    }
    static F load(const float* p) {
        F r;
        std::memcpy(r.x, p, sizeof r.x);
        return r;
    }
    static void store(float* p, F a) { std::memcpy(p, a.x, sizeof a.x); }
    static F add(F a, F b) {
        RUSHES_LOOP16 a.x[i] += b.x[i];
        return a;
    }
    static F multiply(F a, F b) {
        RUSHES_LOOP16 a.x[i] *= b.x[i];
        return a;
    }
    static F fma(F a, F b, F c) {
        RUSHES_LOOP16 c.x[i] += a.x[i] * b.x[i];
        return c;
    }
    static F max(F a, F b) {
        RUSHES_LOOP16 a.x[i] = a.x[i] > b.x[i] ? a.x[i] : b.x[i];
        return a;
    }
    static float horizontal_max(F a) {
        for (int step = 8; step; step /= 2)
            for (int i = 0; i < step; ++i) a.x[i] = a.x[i] > a.x[i + step] ? a.x[i] : a.x[i + step];
        return a.x[0];
    }
    static float horizontal_sum(F a) {
        for (int step = 8; step; step /= 2)
            for (int i = 0; i < step; ++i) a.x[i] += a.x[i + step];
        return a.x[0];
    }
    // a * 2^n for the whole number n in -127 ... 127; -127 gives zero.
    static float times_power(float a, float n) {
        const std::uint32_t bits = static_cast<std::uint32_t>(static_cast<std::int32_t>(n) + 127) << 23;
        float power;
        std::memcpy(&power, &bits, sizeof power);
        return a * power;
    }
    template <class Polynomial>
    static F exp2(F x, Polynomial polynomial) {
        F n, r;
        RUSHES_LOOP16 {
            const float clamped = x.x[i] < -127.0f ? -127.0f : x.x[i];  // NaN stays
            const float high = clamped > 127.0f ? 127.0f : clamped;
            // adding 1.5 * 2^23 leaves no bits for a fraction: rounds to the nearest whole number
            const float nearest = high == high ? (high + 12582912.0f) - 12582912.0f : 0.0f;
            n.x[i] = nearest > high ? nearest - 1.0f : nearest;
            r.x[i] = high - n.x[i];
        }
        F p = polynomial(r);
        RUSHES_LOOP16 p.x[i] = times_power(p.x[i], n.x[i]);
        return p;
    }

    static float from_bf16(std::uint16_t h) {
        const std::uint32_t bits = static_cast<std::uint32_t>(h) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
    static std::uint16_t to_bf16(float value) {
        std::uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        if (value != value) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
        return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);  // to nearest, ties to even
    }
    static float from_f16(std::uint16_t h) {
        // shift exponent and fraction into place, then correct the exponent's bias by a multiplication: subnormals too
        std::uint32_t bits = static_cast<std::uint32_t>(h & 0x7fffu) << 13;
        const bool special = (h & 0x7c00u) == 0x7c00u;
        if (special) bits |= 0x7f800000u;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        if (!special) value *= 0x1p112f;
        return (h & 0x8000u) ? -value : value;
    }
    static std::uint16_t to_f16(float value) {
        std::uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        const std::uint32_t sign = (bits >> 16) & 0x8000u;
        bits &= 0x7fffffffu;
        if (bits > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
        if (bits >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520 and above
        if (bits < 0x38800000u) {  // subnormal: let a float addition do the rounding
            float magnitude;
            std::memcpy(&magnitude, &bits, sizeof magnitude);
            magnitude += 0.5f;
            std::memcpy(&bits, &magnitude, sizeof bits);
            return static_cast<std::uint16_t>(sign | (bits - 0x3f000000u));
        }
        bits += 0xfffu + ((bits >> 13) & 1u);
        return static_cast<std::uint16_t>(sign | ((bits - 0x38000000u) >> 13));
    }
    static F load_bf16(const std::uint16_t* p) {
        F r;
        RUSHES_LOOP16 r.x[i] = from_bf16(p[i]);
        return r;
    }
    static F load_f16(const std::uint16_t* p) {
        F r;
        RUSHES_LOOP16 r.x[i] = from_f16(p[i]);
        return r;
    }
    static void store_bf16(std::uint16_t* p, F a) { RUSHES_LOOP16 p[i] = to_bf16(a.x[i]); }
    static void store_f16(std::uint16_t* p, F a) { RUSHES_LOOP16 p[i] = to_f16(a.x[i]); }

    // target[j][i] = source[i][j], 16 x 16 words
    static void transpose(const std::uint32_t* source, std::int64_t stride, std::uint32_t* target) {
        for (int j = 0; j < 16; ++j) RUSHES_LOOP16 target[j * 16 + i] = source[i * stride + j];
    }
    static void enter() {}
    static void leave() {}
};

}  // namespace
}  // namespace rushes::cpu
