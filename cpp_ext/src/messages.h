// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#pragma once

#include "rushes/attention.h"

namespace rushes {

// Keeps the sentence, a literal, for attention_message() of this thread, and returns the status.
Status fail(Status status, const char* sentence) noexcept;

}  // namespace rushes
