// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#include "engine_vector.h"
#include "vector_portable.h"

namespace rushes::cpu {
namespace {

struct Dot : SingleDot<Portable> {
    static constexpr const char* kName = "portable";
    static constexpr int kRegisterRows = 2, kKeyVectors = 1, kPanelVectors = 1;
    static constexpr std::int64_t kTileRows = 64, kGroupRows = 64, kBlockStrips = 8;
};

}  // namespace

const KernelTable* portable_table() noexcept { return Tile<VectorEngine<Dot>>::table(); }

}  // namespace rushes::cpu
