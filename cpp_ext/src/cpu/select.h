// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#pragma once

#include <cstddef>

#include "kernel_table.h"

namespace rushes::cpu {

// The code for this problem on this processor, or null with the reason in attention_message().
const KernelTable* select_kernel(const Attention& problem);

std::size_t workspace_bytes(const Attention& problem, const KernelTable& kernel);
Status run(const Attention& problem, const KernelTable& kernel);

}  // namespace rushes::cpu
