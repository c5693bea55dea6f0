// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Hopper's instructions: barriers in shared memory, the tensor copy, wgmma. As in ptx.h, a test puts its own in place.
#pragma once

#include "ptx.h"

#if !defined(RUSHES_CUDA_EMULATION)
#include <cuda.h>

namespace rushes::cuda {

using TensorMap = CUtensorMap;

namespace ptx {

// ---- Barriers ------------------------------------------------------------------------------------------------------

RUSHES_DEVICE void barrier_begin(Shared barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}
// After all barrier_begin, by the thread that called them: the tensor copy sees them too.
RUSHES_DEVICE void barriers_begun() {
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;\n" ::: "memory");
}
RUSHES_DEVICE void barrier_arrive(Shared barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}
// Arrives, and the phase then also waits for `bytes` of tensor copies.
RUSHES_DEVICE void barrier_expect(Shared barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}
// Until the phase with this parity has ended; for a new barrier, the phase before its first has parity 1 and has ended.
RUSHES_DEVICE void barrier_wait(Shared barrier, int parity) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}\n" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

// Barriers 1 ... 15 of a block, for `threads` of which some wait and some only arrive.
RUSHES_DEVICE void named_sync(int name, int threads) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(name), "r"(threads) : "memory");
}
RUSHES_DEVICE void named_arrive(int name, int threads) {
    asm volatile("bar.arrive %0, %1;\n" ::"r"(name), "r"(threads) : "memory");
}

// ---- Tensor copy ---------------------------------------------------------------------------------------------------

RUSHES_DEVICE void prefetch(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];\n" ::"l"(&map) : "memory");
}
// A box of the tensor from (channel, token, head, batch) on; what lies outside the tensor is zeros and counts as bytes.
RUSHES_DEVICE void load_box(Shared to, const TensorMap& map, int channel, int token, int head, int batch,
                            Shared barrier) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4, %5}], [%6];\n" ::"r"(to),
        "l"(&map), "r"(channel), "r"(token), "r"(head), "r"(batch), "r"(barrier)
        : "memory");
}

// ---- Registers of a warp group -------------------------------------------------------------------------------------

template <int kRegisters>
RUSHES_DEVICE void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}
template <int kRegisters>
RUSHES_DEVICE void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

// ---- wgmma ---------------------------------------------------------------------------------------------------------

// Before the first product, and after any other instruction has written registers that a product uses.
RUSHES_DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
RUSHES_DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
template <int kPending>
RUSHES_DEVICE void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}
// The registers may have changed: keeps the compiler from reading them ahead of the wait, which names none.
template <int kCount>
RUSHES_DEVICE void touch(float (&d)[kCount]) {
    RUSHES_UNROLL
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

}  // namespace ptx
}  // namespace rushes::cuda

#include "wgmma.h"
#endif
