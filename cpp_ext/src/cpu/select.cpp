// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#include "select.h"

#include "messages.h"
#include "rushes/cpu_features.h"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rushes::cpu {
namespace {

// Tiles are 8 KiB more of registers for each thread that uses them, so Linux gives them on request only.
[[maybe_unused]] bool may_use_amx() noexcept {
#if defined(__linux__) && defined(__x86_64__)
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(2), XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

struct Tables {
    const KernelTable* by_isa[7] = {};

    Tables() {
        [[maybe_unused]] const CpuFeatures cpu = detect_cpu_features();
        by_isa[1] = portable_table();
#if defined(RUSHES_BUILD_AVX2)
        if (cpu.avx2 && cpu.fma && cpu.f16c) by_isa[2] = avx2_table();
#endif
#if defined(RUSHES_BUILD_AVX512)
        const bool avx512 = cpu.avx512f && cpu.avx512bw && cpu.avx512dq && cpu.avx512vl;
        if (avx512) by_isa[3] = avx512_table();
#endif
#if defined(RUSHES_BUILD_AVX512_BF16)
        if (avx512 && cpu.avx512_bf16) by_isa[4] = avx512_bf16_table();
#endif
#if defined(RUSHES_BUILD_AMX_BF16)
        if (avx512 && cpu.avx512_bf16 && cpu.amx_bf16 && may_use_amx()) by_isa[5] = amx_bf16_table();
#endif
#if defined(RUSHES_BUILD_AMX_INT8)
        const bool amx = cpu.amx_bf16 && cpu.amx_int8;
        if (avx512 && cpu.avx512_bf16 && amx && may_use_amx()) by_isa[6] = amx_int8_table();
#endif
    }
};

const Tables& tables() {
    static const Tables kTables;
    return kTables;
}

}  // namespace

const KernelTable* select_kernel(const Attention& a) {
    const auto& by_isa = tables().by_isa;
    const bool natural_bf16 = a.precision == Precision::kNatural && a.dtype == Dtype::kBFloat16;
    const bool wants_bf16 = a.precision == Precision::kBFloat16 || natural_bf16;
    const int isa = static_cast<int>(a.isa);
    const auto best = [&](int from, int to) -> const KernelTable* {
        for (int i = from; i >= to; --i)
            if (by_isa[i] && (isa == 0 || isa == i)) return by_isa[i];
        return nullptr;
    };
    const KernelTable* found = nullptr;
    if (a.precision == Precision::kInt8) found = best(6, 6);
    if (wants_bf16) found = best(5, 4);
    if (!found && (a.precision == Precision::kNatural || a.precision == Precision::kFloat32)) found = best(3, 1);
    if (found) return found;
    const char* sentence = "isa: this processor or build does not have the one asked for";
    if (a.precision == Precision::kBFloat16)
        sentence = "precision: got bf16; this processor or build multiplies float32 only";
    if (a.precision == Precision::kInt8)
        sentence = "precision: got int8; this processor or build has no tiles of int8 (AMX-INT8)";
    fail(Status::kUnsupported, sentence);
    return nullptr;
}

}  // namespace rushes::cpu
