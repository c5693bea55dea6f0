// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#include "engine_vector.h"
#include "vector_avx512.h"

namespace rushes::cpu {
namespace {

struct Dot : SingleDot<Avx512> {
    static constexpr const char* kName = "avx512";
    static constexpr int kRegisterRows = 6, kKeyVectors = 4, kPanelVectors = 4;  // 24 of 32 registers are sums
    static constexpr std::int64_t kTileRows = 96, kGroupRows = 96, kBlockStrips = 8;
};

}  // namespace

const KernelTable* avx512_table() noexcept { return Tile<VectorEngine<Dot>>::table(); }

}  // namespace rushes::cpu
