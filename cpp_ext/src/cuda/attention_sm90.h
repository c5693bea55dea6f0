// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Attention for Hopper (sm_90a), dense and by lists, after the ideas of FlashAttention-3 (arXiv:2407.08608).
// Compiled and checked, not run.
//
// Strategy   A block of three warp groups. One, the producer, copies: one of its threads asks the tensor copy for boxes
//            of 64 tokens and tells by a barrier in shared memory when they have come. Two, the consumers, compute with
//            wgmma, each 64 queries. While the matrix unit computes the next step's scores and this step's sums, the
//            consumer has the other step's softmax to do; and the two take turns in asking for products, so that one's
//            softmax also runs under the other's.
// Splitting  An item of up to 64 queries (small tiles) has both consumers on the same rows: they take the steps in
//            turn, keep a softmax each, and the first adds up both at the end, in a fixed order.
// Layout     Queries, kStages tiles of keys and as many of values, as layout.h says; then the barriers and notes.
// Steps      kKeys keys: two parts of 64 (one, for D = 256), each one box. What a box holds beyond its part are the
//            next tokens, or zeros beyond the last: their scores are masked, in a branch that full steps do not take.
// Limits     As attention_mma.h, and strides that the tensor copy takes (attention_cuda.cpp). A value that is not
//            finite makes rows NaN also when its key only follows the end of a listed tile, as its weight 0 is
//            multiplied.
// Not here   Persistent blocks: an item's first copies do not run under the last products of the one before.
#pragma once

#include <cstddef>

#include "ptx_sm90.h"
#include "softmax.h"

namespace rushes::cuda {

template <class T_, int D_, int kKeys_, int kStages_, bool kSplits_>
struct Sm90Shape {
    using T = T_;
    static constexpr int D = D_, kKeys = kKeys_, kStages = kStages_, kParts = kKeys / 64;
    static constexpr bool kSplits = kSplits_;
    static constexpr int kThreads = 384, kRows = kSplits ? 64 : 128;
    static constexpr int kQueryBytes = Panels<D>::bytes(kRows), kSlotBytes = Panels<D>::bytes(kKeys);
    static constexpr int kDesk = kQueryBytes + 2 * kStages * kSlotBytes;  // offset
    static constexpr int kSharedBytes = kDesk + 1024 + 1024;  // the desk; and tiles begin at a multiple of 1024
    // A wait names the parity of a phase only, so whoever waits must have seen the phase before: a stage may not pass
    // from one consumer to the other.
    static_assert(!kSplits || kStages % 2 == 0, "steps in turn use stages in turn");
    static_assert(kQueryBytes % 1024 == 0 && kSlotBytes % 1024 == 0, "tiles begin where the permutation does");
};

// Tensor maps; boxes of a panel's channels x 64 tokens x 1 x 1.
struct Maps {
    TensorMap q, k, v;
};

// What lies in shared memory behind the tiles.
template <class S>
struct Sm90Desk {
    std::uint64_t queries_full, keys_full[S::kStages], keys_empty[S::kStages], values_full[S::kStages],
        values_empty[S::kStages];
    std::int32_t count[S::kStages][S::kParts];  // keys in each part of a step; 0 in the first: there is no such step
    KeyTable table;
};

template <class S>
struct Sm90Block {
    using Desk = Sm90Desk<S>;
    static_assert(sizeof(Desk) <= 1024, "the desk has its place");
    static constexpr int kConsumers = S::kSplits ? 1 : 2;  // warp groups that read a stage

    Shared queries;

    RUSHES_DEVICE Sm90Block() : queries((ptx::shared_memory() + 1023) / 1024 * 1024) {}
    RUSHES_DEVICE Shared keys(int step) const { return queries + S::kQueryBytes + step % S::kStages * S::kSlotBytes; }
    RUSHES_DEVICE Shared values(int step) const { return keys(step) + S::kStages * S::kSlotBytes; }
    RUSHES_DEVICE Desk& desk() const { return ptx::shared_object<Desk>(queries + S::kDesk); }
    RUSHES_DEVICE Shared place(std::size_t offset, int step) const {
        return queries + S::kDesk + static_cast<Shared>(offset) + step % S::kStages * 8;
    }
    RUSHES_DEVICE Shared queries_full() const { return place(offsetof(Desk, queries_full), 0); }
    RUSHES_DEVICE Shared keys_full(int step) const { return place(offsetof(Desk, keys_full), step); }
    RUSHES_DEVICE Shared keys_empty(int step) const { return place(offsetof(Desk, keys_empty), step); }
    RUSHES_DEVICE Shared values_full(int step) const { return place(offsetof(Desk, values_full), step); }
    RUSHES_DEVICE Shared values_empty(int step) const { return place(offsetof(Desk, values_empty), step); }
    // Use number step / kStages of a stage ends phase number step / kStages of its barrier "full", and of "empty".
    static RUSHES_DEVICE int parity(int step) { return step / S::kStages & 1; }

    RUSHES_DEVICE void begin() const {
        if (ptx::thread() != 0) return;
        ptx::barrier_begin(queries_full(), 1);
        for (int i = 0; i < S::kStages; ++i) {
            ptx::barrier_begin(keys_full(i), 1);
            ptx::barrier_begin(values_full(i), 1);
            ptx::barrier_begin(keys_empty(i), kConsumers * 4);  // one arrival a warp: each has read for its own rows
            ptx::barrier_begin(values_empty(i), kConsumers * 4);
        }
        ptx::barriers_begun();
    }
};

// ---- The producer's first warp -------------------------------------------------------------------------------------

template <class S>
struct Producer {
    const Sm90Block<S>& block;
    const Problem& p;
    const Maps& maps;
    std::int32_t head, batch;

    // kBoxes boxes of 64 tokens, side by side in a tile, for each panel.
    template <int kBoxes>
    RUSHES_DEVICE void load(Shared to, const TensorMap& map, const std::int32_t (&token)[kBoxes],
                            Shared barrier) const {
        using P = Panels<S::D>;
        ptx::barrier_expect(barrier, P::bytes(kBoxes * 64));
        RUSHES_UNROLL
        for (int panel = 0; panel < P::kCount; ++panel)
            RUSHES_UNROLL
            for (int box = 0; box < kBoxes; ++box)
                ptx::load_box(to + (panel * kBoxes + box) * 64 * P::kRowBytes, map, panel * P::kPanel, token[box], head,
                              batch, barrier);
    }

    // Where the boxes of a step begin: an absent part takes zeros from beyond the last token, not what an earlier step
    // or another kernel has left, which could be NaN.
    RUSHES_DEVICE void begins(std::int32_t (&token)[S::kParts], const KeyStep<S::kParts>& step) const {
        RUSHES_UNROLL
        for (int part = 0; part < S::kParts; ++part)
            token[part] = step.count[part] > 0 ? step.begin[part] : p.length_k;
    }

    RUSHES_DEVICE void load_queries(const Item& item) const {
        std::int32_t token[S::kRows / 64];
        RUSHES_UNROLL
        for (int i = 0; i < S::kRows / 64; ++i) token[i] = item.token + i * 64;
        load(block.queries, maps.q, token, block.queries_full());
    }
    RUSHES_DEVICE void load_keys(int i, const KeyStep<S::kParts>& step) const {
        ptx::barrier_wait(block.keys_empty(i), Sm90Block<S>::parity(i) ^ 1);
        RUSHES_UNROLL
        for (int part = 0; part < S::kParts; ++part) block.desk().count[i % S::kStages][part] = step.count[part];
        std::int32_t token[S::kParts];
        begins(token, step);
        load(block.keys(i), maps.k, token, block.keys_full(i));
    }
    RUSHES_DEVICE void load_values(int i, const KeyStep<S::kParts>& step) const {
        ptx::barrier_wait(block.values_empty(i), Sm90Block<S>::parity(i) ^ 1);
        std::int32_t token[S::kParts];
        begins(token, step);
        load(block.values(i), maps.v, token, block.values_full(i));
    }
    // A step without keys, one for each consumer that waits for a step of its own.
    RUSHES_DEVICE void end(int i) const {
        for (int n = 0; n < (S::kSplits ? 2 : 1); ++n) {
            ptx::barrier_wait(block.keys_empty(i + n), Sm90Block<S>::parity(i + n) ^ 1);
            block.desk().count[(i + n) % S::kStages][0] = 0;
            ptx::barrier_arrive(block.keys_full(i + n));
        }
    }

    // Keys are asked for one step ahead of values, as they are needed.
    RUSHES_DEVICE void run(const Item& item) const {
        const bool asks = ptx::thread() % 32 == 0;
        KeyRanges source(p, block.desk().table);
        source.open(item);
        KeySteps<S::kParts, 64> place;
        KeyStep<S::kParts> step, before;
        if (asks) {
            ptx::prefetch(maps.k);
            ptx::prefetch(maps.v);
            load_queries(item);
        }
        int i = 0;
        for (; place.next(source, step); ++i) {
            if (asks) {
                load_keys(i, step);
                if (i > 0) load_values(i - 1, before);
            }
            before = step;
            ptx::barrier_of_warp();
        }
        if (!asks) return;
        if (i > 0) load_values(i - 1, before);
        end(i);
    }
};

// ---- A consumer ----------------------------------------------------------------------------------------------------

template <class S>
struct Consumer {
    const Sm90Block<S>& block;
    const Problem& p;
    const int which;  // 0 or 1
    float scores[S::kKeys / 2];
    float sums[S::D / 2];
    std::uint32_t weights[S::kKeys / 16][4];
    RowState state;

    RUSHES_DEVICE Consumer(const Sm90Block<S>& its_block, const Problem& problem, int number)
        : block(its_block), p(problem), which(number) {}

    static RUSHES_DEVICE int lane() { return ptx::thread() % 32; }
    RUSHES_DEVICE int first_row() const { return (S::kSplits ? 0 : which * 64) + ptx::thread() / 32 % 4 * 16; }

    // Of a barrier "empty", when this warp's products have read the stage.
    static RUSHES_DEVICE void release(Shared barrier) {
        ptx::barrier_of_warp();  // all lanes have read the note
        if (lane() == 0) ptx::barrier_arrive(barrier);
    }

    // False when there is no such step.
    RUSHES_DEVICE bool await_keys(int i, std::int32_t (&count)[S::kParts]) const {
        ptx::barrier_wait(block.keys_full(i), Sm90Block<S>::parity(i));
        RUSHES_UNROLL
        for (int part = 0; part < S::kParts; ++part) count[part] = block.desk().count[i % S::kStages][part];
        return ptx::any_of_warp(count[0] > 0);  // the same for all; the vote tells the compiler so
    }
    RUSHES_DEVICE void await_values(int i) const {
        ptx::barrier_wait(block.values_full(i), Sm90Block<S>::parity(i));
    }

    // The turns in asking for products. Each barrier counts the 128 threads that wait for their turn and the 128 that
    // give it. A split item has no turns: its consumers need not take as many steps.
    RUSHES_DEVICE void await_turn() const {
        if constexpr (!S::kSplits) ptx::named_sync(1 + which, 256);
    }
    RUSHES_DEVICE void give_turn() const {
        if constexpr (!S::kSplits) ptx::named_arrive(2 - which, 256);
    }

    RUSHES_DEVICE void multiply_keys(int i) {
        const std::uint64_t a = k_major<S::D>(block.queries + (S::kSplits ? 0 : which * 64 * Panels<S::D>::kRowBytes));
        const std::uint64_t b = k_major<S::D>(block.keys(i));
        ptx::products_begin();
        RUSHES_UNROLL
        for (int step = 0; step < S::D / 16; ++step)  // addresses are in units of 16 bytes there
            ptx::multiply_shared<typename S::T>(scores, a + k_step_bytes<S::D, S::kRows>(step) / 16,
                                                b + k_step_bytes<S::D, S::kKeys>(step) / 16, step > 0);
        ptx::products_commit();
    }
    RUSHES_DEVICE void multiply_values(int i) {
        const std::uint64_t b = n_major<S::D, S::kKeys>(block.values(i));
        ptx::products_begin();
        RUSHES_UNROLL
        for (int step = 0; step < S::kKeys / 16; ++step)
            ptx::multiply_registers<typename S::T>(sums, weights[step], b + n_step_bytes<S::D>(step) / 16);
        ptx::products_commit();
    }

    RUSHES_DEVICE bool soften_step(const std::int32_t (&count)[S::kParts], float (&shrink)[2]) {
        if (p.is_negative) negate(scores);
        bool is_full = true;
        RUSHES_UNROLL
        for (int part = 0; part < S::kParts; ++part) is_full &= count[part] == 64;
        if (!is_full) mask_scores<S::kKeys>(scores, count, lane());
        return soften(scores, state, p.factor, shrink);
    }
    RUSHES_DEVICE void pack() {
        RUSHES_UNROLL
        for (int step = 0; step < S::kKeys / 16; ++step) pack_weights<typename S::T>(weights[step], scores, step);
    }

    // All of this consumer's steps.
    RUSHES_DEVICE void run() {
        constexpr int kStride = S::kSplits ? 2 : 1;
        int i = S::kSplits ? which : 0;
        std::int32_t count[S::kParts];
        float shrink[2];
        RUSHES_UNROLL
        for (int n = 0; n < S::D / 2; ++n) sums[n] = 0.0f;
        if constexpr (!S::kSplits) {
            if (which == 1) ptx::named_arrive(1, 256);  // the first turn is consumer 0's
        }
        ptx::barrier_wait(block.queries_full(), 0);
        if (!await_keys(i, count)) return;
        await_turn();
        multiply_keys(i);
        give_turn();
        ptx::products_wait<0>();
        ptx::touch(scores);
        release(block.keys_empty(i));
        soften_step(count, shrink);
        pack();
        for (; await_keys(i + kStride, count); i += kStride) {
            await_turn();
            multiply_keys(i + kStride);
            await_values(i);
            multiply_values(i);
            give_turn();
            ptx::products_wait<1>();  // the scores are there; the sums still being added to
            ptx::touch(scores);
            release(block.keys_empty(i + kStride));
            const bool moved = soften_step(count, shrink);
            ptx::products_wait<0>();
            ptx::touch(sums);
            release(block.values_empty(i));
            if (moved) rescale(sums, shrink);
            pack();
        }
        await_values(i);
        multiply_values(i);
        ptx::products_wait<0>();
        ptx::touch(sums);
    }

    // Adds consumer 1's sums to those of consumer 0. Thread t of both has the same rows and columns.
    RUSHES_DEVICE void join() {
        constexpr int kCount = S::D / 2;
        float* shared = &ptx::shared_object<float>(block.keys(0)) + ptx::thread() % 128;
        ptx::named_sync(3, 256);  // nobody reads keys or values any more
        if (which == 1) {
            RUSHES_UNROLL
            for (int n = 0; n < kCount; ++n) shared[n * 128] = sums[n];
            RUSHES_UNROLL
            for (int row = 0; row < 2; ++row) {
                shared[(kCount + row) * 128] = state.maximum[row];
                shared[(kCount + 2 + row) * 128] = state.weight[row];
            }
        }
        ptx::named_sync(3, 256);
        if (which == 1) return;
        float own[2], other[2];
        RUSHES_UNROLL
        for (int row = 0; row < 2; ++row) {  // without steps, consumer 1 has maximum -infinity: 2^-infinity = 0
            const float maximum = shared[(kCount + row) * 128], top = fmaxf(state.maximum[row], maximum);
            own[row] = ptx::exp2(state.maximum[row] - top);
            other[row] = ptx::exp2(maximum - top);
            state.weight[row] = state.weight[row] * own[row] + shared[(kCount + 2 + row) * 128] * other[row];
        }
        RUSHES_UNROLL
        for (int n = 0; n < kCount; ++n) {
            const int row = n / 2 % 2;
            sums[n] = sums[n] * own[row] + shared[n * 128] * other[row];
        }
    }
};

template <class S>
RUSHES_DEVICE void attention_sm90(const Problem& p, const Maps& maps) {
    const Item item = item_of_block(p, S::kRows);
    if (item.rows == 0) return;
    const Sm90Block<S> block;
    block.begin();
    ptx::barrier();
    const int group = ptx::shuffle(ptx::thread() / 128, 0);  // the same for a whole warp, as the compiler should know
    if (group == 0) {
        ptx::give_registers<40>();
        if (ptx::thread() < 32)
            Producer<S>{block, p, maps, item.group % p.heads, item.group / p.heads}.run(item);
    } else {
        ptx::take_registers<232>();
        Consumer<S> consumer(block, p, group - 1);
        consumer.run();
        if constexpr (S::kSplits) consumer.join();
        if (!S::kSplits || group == 1)
            store_rows<typename S::T, S::D>(consumer.sums, consumer.state, p, item, consumer.first_row(),
                                            Consumer<S>::lane());
    }
}

}  // namespace rushes::cuda
