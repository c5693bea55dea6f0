// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#pragma once

#include <cstdint>

namespace rushes::cpu {

// Calls body(context, thread) once for each of thread = 0 ... threads - 1 and returns when all have ended; 0 is the
// caller. Helpers are started at first need and sleep between calls. A second caller at the same time works alone, with
// `threads` = 1, and so does the child of a fork until its own helpers are up. Returns how many threads worked.
int run_on_threads(int threads, void (*body)(void* context, int thread, int threads), void* context) noexcept;

}  // namespace rushes::cpu
