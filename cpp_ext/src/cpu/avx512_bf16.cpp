// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#include "dot_bf16.h"
#include "engine_vector.h"

namespace rushes::cpu {
namespace {

struct Dot : PairDot {
    static constexpr const char* kName = "avx512_bf16";
    static constexpr std::int64_t kDepthMultiple = 2;
    static constexpr int kRegisterRows = 6, kKeyVectors = 4, kPanelVectors = 4;
    static constexpr std::int64_t kTileRows = 96, kGroupRows = 96, kBlockStrips = 8;
    static void enter() { Avx512::enter(); }
    static void leave() { Avx512::leave(); }
};

}  // namespace

const KernelTable* avx512_bf16_table() noexcept { return Tile<VectorEngine<Dot>>::table(); }

}  // namespace rushes::cpu
