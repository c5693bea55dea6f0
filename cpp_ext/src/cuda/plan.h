// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// The items of a problem by lists, sorted (work.h), made on the device: three small kernels, so that nobody on the host
// waits for what the lists say. A counting sort that keeps the order of equals; no atomics, so it is the same each
//   time. count   blocks of kSlots slots: how many of each bucket             -> counts[bucket][block]
//   sum     one block: the sums of all counts before each               -> counts, in place
//   place   blocks of kSlots slots: each item to its place              -> items
#pragma once

#include "problem.h"
#include "ptx.h"

namespace rushes::cuda {

struct PlanDesk {
    std::int32_t bucket[kSlots];
    std::uint32_t sum[kSlots];
};

// This thread's item and bucket; the buckets of the whole block in shared memory. Beyond the slots the bucket is -1.
RUSHES_DEVICE Item slot_item(const Plan& plan, PlanDesk& desk) {
    const std::int64_t slot = ptx::block() * kSlots + ptx::thread();
    Item item{};
    int bucket = -1;
    if (slot < plan.slots) {
        item = item_of_slot(plan.lists, slot / plan.slots_per_group, slot % plan.slots_per_group, plan.rows);
        bucket = bucket_of(plan.lists, item);
    }
    desk.bucket[ptx::thread()] = bucket;
    ptx::barrier();
    return item;
}

RUSHES_DEVICE void plan_count(const Plan& plan) {
    PlanDesk& desk = ptx::shared_object<PlanDesk>(ptx::shared_memory());
    slot_item(plan, desk);
    if (ptx::thread() >= kBuckets) return;
    std::uint32_t count = 0;
    for (int i = 0; i < kSlots; ++i) count += desk.bucket[i] == ptx::thread();
    plan.counts[static_cast<std::int64_t>(ptx::thread()) * plan.blocks + ptx::block()] = count;
}

RUSHES_DEVICE void plan_sum(const Plan& plan) {
    PlanDesk& desk = ptx::shared_object<PlanDesk>(ptx::shared_memory());
    const std::int64_t all = static_cast<std::int64_t>(kBuckets) * plan.blocks, each = (all + kSlots - 1) / kSlots;
    const std::int64_t begin = ptx::thread() * each, end = begin + each < all ? begin + each : all;
    std::uint32_t own = 0;
    for (std::int64_t i = begin; i < end; ++i) own += plan.counts[i];
    desk.sum[ptx::thread()] = own;
    ptx::barrier();
    std::uint32_t before = 0;
    for (int i = 0; i < ptx::thread(); ++i) before += desk.sum[i];
    for (std::int64_t i = begin; i < end; ++i) {
        const std::uint32_t count = plan.counts[i];
        plan.counts[i] = before;
        before += count;
    }
}

RUSHES_DEVICE void plan_place(const Plan& plan) {
    PlanDesk& desk = ptx::shared_object<PlanDesk>(ptx::shared_memory());
    const Item item = slot_item(plan, desk);
    const int bucket = desk.bucket[ptx::thread()];
    if (bucket < 0) return;
    std::uint32_t place = plan.counts[static_cast<std::int64_t>(bucket) * plan.blocks + ptx::block()];
    for (int i = 0; i < ptx::thread(); ++i) place += desk.bucket[i] == bucket;
    plan.items[place] = item;
}

}  // namespace rushes::cuda
