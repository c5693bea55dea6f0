// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#include "engine_vector.h"
#include "vector_avx2.h"

namespace rushes::cpu {
namespace {

struct Dot : SingleDot<Avx2> {
    static constexpr const char* kName = "avx2";
    static constexpr int kRegisterRows = 6, kKeyVectors = 1, kPanelVectors = 1;  // 12 of 16 registers are sums
    static constexpr std::int64_t kTileRows = 96, kGroupRows = 96, kBlockStrips = 8;
};

}  // namespace

const KernelTable* avx2_table() noexcept { return Tile<VectorEngine<Dot>>::table(); }

}  // namespace rushes::cpu
