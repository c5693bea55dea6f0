// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Bit positions: Intel SDM volume 2A, CPUID, leaves 1 and 7; volume 1, section 13.3 for XCR0.
#include "rushes/cpu_features.h"

#if defined(__aarch64__) || defined(_M_ARM64) || defined(_M_ARM64EC) || defined(__ARM_NEON)
#define RUSHES_ARM_NEON 1
#elif defined(__x86_64__) || defined(__i386__) || defined(_M_X64) || defined(_M_IX86)
#define RUSHES_X86 1
#endif

#if defined(RUSHES_X86)
#include <cstdint>
#if defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace rushes {

#if defined(RUSHES_X86)

namespace {

struct CpuidRegisters {
    std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero when the processor does not know the leaf: an unknown leaf otherwise repeats the highest known one.
CpuidRegisters cpuid(std::uint32_t leaf, std::uint32_t subleaf) noexcept {
    CpuidRegisters registers;
#if defined(_MSC_VER)
    int highest[4];
    __cpuid(highest, 0);
    if (static_cast<std::uint32_t>(highest[0]) < leaf) return registers;
    int words[4];
    __cpuidex(words, static_cast<int>(leaf), static_cast<int>(subleaf));
    registers.eax = static_cast<std::uint32_t>(words[0]);
    registers.ebx = static_cast<std::uint32_t>(words[1]);
    registers.ecx = static_cast<std::uint32_t>(words[2]);
    registers.edx = static_cast<std::uint32_t>(words[3]);
#else
    if (!__get_cpuid_count(leaf, subleaf, &registers.eax, &registers.ebx, &registers.ecx, &registers.edx))
        return CpuidRegisters{};
#endif
    return registers;
}

// XCR0: the register states that the operating system saves. Only valid when OSXSAVE is set.
std::uint64_t read_xcr0() noexcept {
#if defined(_MSC_VER)
    return _xgetbv(0);
#else
    // Not the intrinsic: that one needs -mxsave, and this file must run on any x86.
    std::uint32_t low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<std::uint64_t>(high) << 32) | low;
#endif
}

constexpr bool has_bit(std::uint32_t word, int bit) noexcept { return ((word >> bit) & 1u) != 0; }

constexpr bool has_all(std::uint64_t word, std::uint64_t mask) noexcept { return (word & mask) == mask; }

constexpr std::uint64_t kAvxState = (1u << 1) | (1u << 2);                             // XMM, YMM
constexpr std::uint64_t kAvx512State = kAvxState | (1u << 5) | (1u << 6) | (1u << 7);  // masks, ZMM low and high
constexpr std::uint64_t kAmxState = (1u << 17) | (1u << 18);                           // tile configuration and data

}  // namespace

CpuFeatures detect_cpu_features() noexcept {
    CpuFeatures features;
    const CpuidRegisters leaf1 = cpuid(1, 0);
    const bool has_osxsave = has_bit(leaf1.ecx, 27);
    if (!has_osxsave) return features;

    const std::uint64_t xcr0 = read_xcr0();
    const CpuidRegisters leaf7 = cpuid(7, 0);
    // EAX of leaf 7 is its highest subleaf; asking for a higher one is undefined on old processors.
    const CpuidRegisters leaf7_1 = leaf7.eax >= 1 ? cpuid(7, 1) : CpuidRegisters{};

    if (has_all(xcr0, kAvxState) && has_bit(leaf1.ecx, 28)) {
        features.fma = has_bit(leaf1.ecx, 12);
        features.f16c = has_bit(leaf1.ecx, 29);
        features.avx2 = has_bit(leaf7.ebx, 5);
    }
    // macOS sets the AVX-512 bits of XCR0 only after a thread's first use, so it reads as absent there: AVX2 serves.
    if (has_all(xcr0, kAvx512State)) {
        features.avx512f = has_bit(leaf7.ebx, 16);
        features.avx512dq = features.avx512f && has_bit(leaf7.ebx, 17);
        features.avx512bw = features.avx512f && has_bit(leaf7.ebx, 30);
        features.avx512vl = features.avx512f && has_bit(leaf7.ebx, 31);
        features.avx512_bf16 = features.avx512f && has_bit(leaf7_1.eax, 5);
    }
    if (has_all(xcr0, kAmxState) && has_bit(leaf7.edx, 24)) {
        features.amx_bf16 = has_bit(leaf7.edx, 22);
        features.amx_int8 = has_bit(leaf7.edx, 25);
    }
    return features;
}

#else

CpuFeatures detect_cpu_features() noexcept {
    CpuFeatures features;
#if defined(RUSHES_ARM_NEON)
    features.neon = true;  // part of the base of AArch64; a 32-bit build has it only when compiled for it
#endif
    return features;
}

#endif

}  // namespace rushes
