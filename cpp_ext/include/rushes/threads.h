// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#pragma once

namespace rushes {

// Four functions of an OpenMP runtime that is in the process already, in GNU's calling convention, by the names that they
// have there. Addresses, so that this library links to no runtime and brings none.
struct OpenMp {
    void (*GOMP_parallel)(void (*body)(void*), void* context, unsigned threads, unsigned flags);
    int (*omp_get_thread_num)();
    int (*omp_get_max_threads)();
    int (*omp_in_parallel)();
};

// From now on attention runs on that runtime's threads, where they are as many as it is asked for or more: whoever else
// uses them (torch) has just left them awake, and the process has no second set of threads. Otherwise, inside a parallel
// region, and in the child of a fork, where the runtime's threads are gone, it runs on its own threads as before.
void share_threads(const OpenMp& openmp) noexcept;

}  // namespace rushes
