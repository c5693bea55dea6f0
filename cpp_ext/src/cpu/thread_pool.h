// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#pragma once

#include <cstdint>

namespace rushes::cpu {

// Calls body(context, thread) once for each of thread = 0 ... threads - 1, or for the first few of them, and returns when
// all have ended; 0 is the caller. On the threads of rushes/threads.h; otherwise on helpers, which are started at first
// need and sleep between calls. There a second caller at the same time works alone. body must not throw.
void run_on_threads(int threads, void (*body)(void* context, int thread), void* context) noexcept;

// Whether they would be those of rushes/threads.h, which are mostly awake.
bool shares_threads(int threads) noexcept;

// For short waits, once a round: gives way to the processor's other thread, and after many rounds to other programs.
class Pause {
public:
    void operator()() noexcept;

private:
    int rounds_ = 0;
};

}  // namespace rushes::cpu
