// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#pragma once

namespace rushes {

// Instruction sets that this process may use: the processor has them AND the operating system saves their registers.
// Fields of the other architecture are false.
struct CpuFeatures {
    bool avx2 = false;
    bool fma = false;
    bool f16c = false;
    bool avx512f = false;
    bool avx512bw = false;
    bool avx512dq = false;
    bool avx512vl = false;
    bool avx512_bf16 = false;
    // Linux also wants each process to ask for the tile registers (arch_prctl ARCH_REQ_XCOMP_PERM) before first use.
    bool amx_bf16 = false;
    bool amx_int8 = false;
    bool neon = false;
};

// Asks the processor each time; a few microseconds.
CpuFeatures detect_cpu_features() noexcept;

}  // namespace rushes
