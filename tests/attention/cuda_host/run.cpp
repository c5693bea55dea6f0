// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// The CUDA kernels' own source, compiled for the host and run thread by thread; a shared library for ctypes.
#include <cstdio>
#include <cstring>
#include <string>

#include "attention_mma.h"
#include "attention_sm90.h"
#include "plan.h"

using namespace rushes;
using namespace rushes::cuda;

namespace {

using emulation::Machine;
using emulation::Mode;

// All by the names of its fields in Python, in this order.
struct Request {
    std::int64_t batch, heads, length_q, length_k, head_dim;
    std::int64_t strides[4][4];  // of q, k, v, out
    void* data[4];
    double scale;
    std::int64_t query_tiles, key_tiles, sets;  // query_tiles 0: dense
    const std::int64_t *query_start, *key_start, *offsets;
    const std::int32_t* tiles;
    std::int64_t mode, seed;
};

template <class Kernel>
void run_blocks(std::int64_t blocks, int threads, int shared_bytes, const Request& request, const Kernel& kernel) {
    Machine machine(threads, static_cast<std::size_t>(shared_bytes), static_cast<Mode>(request.mode),
                    static_cast<unsigned>(request.seed));
    for (std::int64_t i = 0; i < blocks; ++i) machine.run(i, kernel);
}

Problem problem_of(const Request& r) {
    Problem p{};
    Tensor* tensors[4] = {&p.q, &p.k, &p.v, &p.out};
    for (int i = 0; i < 4; ++i) {
        tensors[i]->data = r.data[i];
        for (int j = 0; j < 4; ++j) tensors[i]->strides[j] = r.strides[i][j];
    }
    p.heads = static_cast<std::int32_t>(r.heads);
    p.length_q = static_cast<std::int32_t>(r.length_q);
    p.length_k = static_cast<std::int32_t>(r.length_k);
    p.head_dim = static_cast<std::int32_t>(r.head_dim);
    set_scale(p, static_cast<float>(r.scale));
    if (r.query_tiles)
        p.lists = {r.query_tiles, r.key_tiles, r.query_start, r.key_start, r.sets, r.offsets, r.tiles};
    return p;
}

std::vector<Item> items_of(const Request& r, const TileLists& lists, int rows) {
    Plan plan{};
    plan.lists = lists;
    plan.slots_per_group = slots_per_group(r.query_tiles, r.length_q, rows);
    plan.slots = plan.slots_per_group * r.batch * r.heads;
    plan.rows = rows;
    plan.blocks = static_cast<std::int32_t>(plan_blocks(plan.slots));
    std::vector<std::uint32_t> counts(static_cast<std::size_t>(kBuckets * plan.blocks), 0xffffffff);
    std::vector<Item> items(static_cast<std::size_t>(plan.slots), Item{-1, -1, -1, -1});
    plan.counts = counts.data();
    plan.items = items.data();
    run_blocks(plan.blocks, kSlots, sizeof(PlanDesk), r, [&] { plan_count(plan); });
    run_blocks(1, kSlots, sizeof(PlanDesk), r, [&] { plan_sum(plan); });
    run_blocks(plan.blocks, kSlots, sizeof(PlanDesk), r, [&] { plan_place(plan); });
    return items;
}

template <class Body>
void run_problem(const Request& r, int rows, int threads, int shared_bytes, const Body& body) {
    Problem p = problem_of(r);
    std::vector<Item> items;
    std::int64_t blocks = 0;
    if (r.query_tiles) {
        items = items_of(r, p.lists, rows);
        p.items = items.data();
        blocks = static_cast<std::int64_t>(items.size());
    } else {
        p.row_tiles = static_cast<std::int32_t>((r.length_q + rows - 1) / rows);
        blocks = p.row_tiles * r.batch * r.heads;
    }
    run_blocks(blocks, threads, shared_bytes, r, [&] { body(p); });
}

template <class S>
void run_mma(const Request& r) {
    run_problem(r, S::kRows, S::kThreads, S::kSharedBytes, [](const Problem& p) { attention_mma<S>(p); });
}

template <class S>
void run_sm90(const Request& r) {
    const auto map = [&](int i, std::int64_t length) {
        TensorMap result{};
        result.data = static_cast<const unsigned char*>(r.data[i]);
        const std::int64_t sizes[4] = {r.head_dim, length, r.heads, r.batch};
        const std::int64_t strides[4] = {1, r.strides[i][2], r.strides[i][1], r.strides[i][0]};
        for (int j = 0; j < 4; ++j) {
            result.sizes[j] = sizes[j];
            result.bytes[j] = strides[j] * 2;
        }
        result.box_channels = Panels<S::D>::kPanel;
        result.box_tokens = 64;
        return result;
    };
    const Maps maps = {map(0, r.length_q), map(1, r.length_k), map(2, r.length_k)};
    run_problem(r, S::kRows, S::kThreads, S::kSharedBytes, [&](const Problem& p) { attention_sm90<S>(p, maps); });
}

// The shapes of the .cu files.
template <class T>
bool run_named(const std::string& name, const Request& r) {
    if (name == "mma d64 128") return run_mma<MmaShape<T, 64, 4, 2, 64, 2>>(r), true;
    if (name == "mma d64 64") return run_mma<MmaShape<T, 64, 4, 1, 64, 2>>(r), true;
    if (name == "mma d96 128") return run_mma<MmaShape<T, 96, 4, 2, 64, 1>>(r), true;
    if (name == "mma d96 64") return run_mma<MmaShape<T, 96, 4, 1, 64, 1>>(r), true;
    if (name == "mma d128 128") return run_mma<MmaShape<T, 128, 4, 2, 64, 1>>(r), true;
    if (name == "mma d128 128x32") return run_mma<MmaShape<T, 128, 4, 2, 32, 1>>(r), true;
    if (name == "mma d128 64") return run_mma<MmaShape<T, 128, 4, 1, 64, 1>>(r), true;
    if (name == "mma d256 64") return run_mma<MmaShape<T, 256, 4, 1, 64, 1>>(r), true;
    if (name == "sm90 d64 128") return run_sm90<Sm90Shape<T, 64, 128, 4, false>>(r), true;
    if (name == "sm90 d64 64") return run_sm90<Sm90Shape<T, 64, 128, 4, true>>(r), true;
    if (name == "sm90 d96 128") return run_sm90<Sm90Shape<T, 96, 128, 4, false>>(r), true;
    if (name == "sm90 d96 64") return run_sm90<Sm90Shape<T, 96, 128, 4, true>>(r), true;
    if (name == "sm90 d128 128") return run_sm90<Sm90Shape<T, 128, 128, 2, false>>(r), true;
    if (name == "sm90 d128 64") return run_sm90<Sm90Shape<T, 128, 128, 2, true>>(r), true;
    if (name == "sm90 d256 128") return run_sm90<Sm90Shape<T, 256, 64, 2, false>>(r), true;
    if (name == "sm90 d256 64") return run_sm90<Sm90Shape<T, 256, 64, 2, true>>(r), true;
    return false;
}

}  // namespace

// 0; 1 for a name that is not known; 2 when a rule of the machine was broken, with `message`, a buffer of 256.
extern "C" int run_kernel(const char* name, int is_bfloat16, const Request* request, char* message) {
    try {
        return (is_bfloat16 ? run_named<BFloat16>(name, *request) : run_named<Float16>(name, *request)) ? 0 : 1;
    } catch (const std::runtime_error& error) {
        std::snprintf(message, 256, "%s", error.what());
        return 2;
    }
}

// Four numbers for each item: group, token, rows, list. Returns how many items there are.
extern "C" std::int64_t run_plan(const Request* request, std::int64_t rows, std::int32_t* numbers) {
    const std::vector<Item> items = items_of(*request, problem_of(*request).lists, static_cast<int>(rows));
    std::memcpy(numbers, items.data(), items.size() * sizeof(Item));
    return static_cast<std::int64_t>(items.size());
}
