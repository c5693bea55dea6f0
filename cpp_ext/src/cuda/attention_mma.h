// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Attention for sm_80 and newer with mma.sync: FlashAttention-2 (arXiv:2307.08691, algorithm 1), dense and by lists.
// Compiled and checked, not run.
//
// Strategy   A block of kWarps warps takes an item (work.h): each warp kTiles x 16 queries and all keys, so that a
//            row's softmax needs no other warp. Keys pass by in steps of kKeys (key_steps.h). For each step: scores = q
//            k^T, maxima, exp2, sums += weights v. The weights never leave their registers: an accumulator, rounded, is
//            an A.
// Layout     Queries, and kStages tiles each of keys and values, in shared memory as layout.h says.
// Copies     cp.async. With one stage, values arrive while the scores are computed and the next keys while the values
//            are used; with two, each tile has a whole step to arrive. In both, the barrier that makes a tile visible
//            also tells that the slot which is filled next has been read by all.
// Tails      Absent keys and channels are zeros in shared memory, absent keys get the score -infinity. The mask is
//            behind a branch that all threads take alike; full steps run none of it.
// Limits     head_dim up to D in steps of 8, rows of 16-byte-aligned chunks, channel stride 1.
// Not here   Splitting a row's keys over blocks: bits would depend on how many there are.
#pragma once

#include "softmax.h"

namespace rushes::cuda {

template <class T_, int D_, int kWarps_, int kTiles_, int kKeys_, int kStages_>
struct MmaShape {
    using T = T_;
    static constexpr int D = D_, kWarps = kWarps_, kTiles = kTiles_, kKeys = kKeys_, kStages = kStages_;
    static constexpr int kThreads = kWarps * 32, kRows = kWarps * kTiles * 16;
    static constexpr int kQueryBytes = Panels<D>::bytes(kRows), kSlotBytes = Panels<D>::bytes(kKeys);
    static constexpr int kTileBytes = kQueryBytes + 2 * kStages * kSlotBytes;
    static constexpr int kSharedBytes = kTileBytes + 512;  // and a KeyDesk
    // With one tile of rows there is room in the registers to read the queries from shared memory once only.
    static constexpr bool kHoldsQueries = kTiles == 1 && D <= 128;
};

// kRows x D of a tensor -> shared memory; zeros beyond `count` rows and beyond head_dim. A pass takes 128 bytes (64 in
// panels of 32) of each of kPass rows; kPass is a multiple of 8, so all passes of a thread permute its chunk alike.
template <class S, int kRows>
RUSHES_DEVICE void load_tile(Shared to, const char* from, std::int64_t token_stride, int count, int head_dim) {
    using P = Panels<S::D>;
    constexpr int kPass = S::kThreads / P::kRowChunks;
    static_assert(kPass % 8 == 0 && kRows % kPass == 0, "every thread copies as much");
    // Hidden from the optimizer, which would otherwise keep the address of each copy in registers for the whole loop.
    const unsigned thread = ptx::opaque_thread();
    const int first = static_cast<int>(thread / P::kRowChunks), chunk = static_cast<int>(thread % P::kRowChunks);
    to += P::template offset<kRows>(first, chunk);
    from += chunk * 16;
    token_stride *= 2;
    RUSHES_UNROLL
    for (int pass = 0; pass < kRows / kPass; ++pass) {
        const int row = first + pass * kPass;
        const char* source = from + (row < count ? row : 0) * token_stride;  // row 0 is always there, if unread
        RUSHES_UNROLL
        for (int panel = 0; panel < P::kCount; ++panel) {
            const bool valid = row < count && panel * P::kPanel + chunk * 8 < head_dim;
            ptx::copy_async(to + panel * (kRows * P::kRowBytes) + pass * kPass * P::kRowBytes,
                            source + panel * P::kRowBytes, valid);
        }
    }
    ptx::commit_copies();
}

// In shared memory: warp 0 finds the steps for all; this, and what is needed once in a step, is not to be had in the
// registers of every thread.
template <class S>
struct KeyDesk {
    Item item;
    const char *k, *v;  // the first token's
    KeySteps<1, S::kKeys> place;
    KeyStep<1> step[4];  // step i is at i % 4; one without keys ends them
    KeyTable table;

    // By warp 0; a barrier then makes it, and steps 0 and 1, known to all.
    RUSHES_DEVICE void open(const Problem& p, const Item& its_item) {
        if (ptx::thread() == 0) {
            item = its_item;
            k = token_address(p.k, p, item.group, 0);
            v = token_address(p.v, p, item.group, 0);
            place = {};
        }
        KeyRanges(p, table).open(its_item);
        find(p, 0);
        find(p, 1);
    }
    RUSHES_DEVICE void find(const Problem& p, int i) {
        KeySteps<1, S::kKeys> own_place = place;
        KeyStep<1> found;
        KeyRanges source(p, table);
        own_place.next(source, found);
        ptx::barrier_of_warp();  // all lanes have read `place`
        if (ptx::thread() == 0) {
            place = own_place;
            step[i % 4] = found;
        }
        ptx::barrier_of_warp();
    }
};

template <class S>
struct MmaWarp {
    using P = Panels<S::D>;
    float sums[S::kTiles][S::D / 2];
    float scores[S::kTiles][S::kKeys / 2];
    std::uint32_t weights[S::kTiles][S::kKeys / 16][4];  // packed at once: half the registers while copies are asked for
    std::uint32_t held[S::kHoldsQueries ? S::D / 16 : 1][4];
    RowState state[S::kTiles];

    static RUSHES_DEVICE int lane() { return static_cast<int>(ptx::opaque_thread() % 32); }
    static RUSHES_DEVICE int first_row() { return static_cast<int>(ptx::opaque_thread() / 32) * S::kTiles * 16; }

    RUSHES_DEVICE void load_queries(std::uint32_t (&a)[4], Shared queries, int tile, int step) const {
        const RowChunk own = query_address(lane());
        const int offset = P::template offset<S::kRows>(first_row() + own.row, own.chunk);
        ptx::load_matrices(a, queries + P::template moved<S::kRows>(offset, tile * 2, step));
    }

    RUSHES_DEVICE void multiply_keys(Shared queries, Shared keys) {
        const RowChunk own = key_address(lane());
        const int offset = P::template offset<S::kKeys>(own.row, own.chunk);
        RUSHES_UNROLL
        for (int tile = 0; tile < S::kTiles; ++tile)
            RUSHES_UNROLL
            for (int i = 0; i < S::kKeys / 2; ++i) scores[tile][i] = 0.0f;
        RUSHES_UNROLL
        for (int step = 0; step < S::D / 16; ++step) {
            std::uint32_t a[S::kTiles][4];
            if constexpr (!S::kHoldsQueries) {
                RUSHES_UNROLL
                for (int tile = 0; tile < S::kTiles; ++tile) load_queries(a[tile], queries, tile, step);
            }
            RUSHES_UNROLL
            for (int n = 0; n < S::kKeys / 16; ++n) {
                std::uint32_t b[4];
                ptx::load_matrices(b, keys + P::template moved<S::kKeys>(offset, n * 2, step));
                RUSHES_UNROLL
                for (int tile = 0; tile < S::kTiles; ++tile) {
                    const auto& rows = S::kHoldsQueries ? held[S::kHoldsQueries ? step : 0] : a[tile];
                    ptx::multiply<typename S::T>(&scores[tile][n * 8], rows, b[0], b[1]);
                    ptx::multiply<typename S::T>(&scores[tile][n * 8 + 4], rows, b[2], b[3]);
                }
            }
        }
    }

    RUSHES_DEVICE void multiply_values(Shared values) {
        const RowChunk own = value_address(lane());
        const int offset = P::template offset<S::kKeys>(own.row, own.chunk);
        RUSHES_UNROLL
        for (int step = 0; step < S::kKeys / 16; ++step) {
            RUSHES_UNROLL
            for (int n = 0; n < S::D / 16; ++n) {
                std::uint32_t b[4];
                ptx::load_matrices_transposed(b, values + P::template moved<S::kKeys>(offset, step * 2, n));
                RUSHES_UNROLL
                for (int tile = 0; tile < S::kTiles; ++tile) {
                    ptx::multiply<typename S::T>(&sums[tile][n * 8], weights[tile][step], b[0], b[1]);
                    ptx::multiply<typename S::T>(&sums[tile][n * 8 + 4], weights[tile][step], b[2], b[3]);
                }
            }
        }
    }

    RUSHES_DEVICE void begin(Shared queries) {
        RUSHES_UNROLL
        for (int tile = 0; tile < S::kTiles; ++tile)
            RUSHES_UNROLL
            for (int i = 0; i < S::D / 2; ++i) sums[tile][i] = 0.0f;
        if constexpr (S::kHoldsQueries) {
            ptx::wait_copies<S::kStages>();  // keys, or keys and values, were asked for since
            ptx::barrier();
            RUSHES_UNROLL
            for (int step = 0; step < S::D / 16; ++step) load_queries(held[step], queries, 0, step);
        }
    }

    RUSHES_DEVICE void store(const Problem& p, const Item& item) const {
        RUSHES_UNROLL
        for (int tile = 0; tile < S::kTiles; ++tile)
            store_rows<typename S::T, S::D>(sums[tile], state[tile], p, item, first_row() + tile * 16, lane());
    }

    // The softmax of a step, with its mask; rescales the sums.
    RUSHES_DEVICE void soften_step(const Problem& p, std::int32_t key_count) {
        const std::int32_t count[1] = {key_count};
        RUSHES_UNROLL
        for (int tile = 0; tile < S::kTiles; ++tile) {
            if (p.is_negative) negate(scores[tile]);
            if (key_count < S::kKeys) mask_scores<S::kKeys>(scores[tile], count, lane());
            float shrink[2];
            if (soften(scores[tile], state[tile], p.factor, shrink)) rescale(sums[tile], shrink);
            RUSHES_UNROLL
            for (int i = 0; i < S::kKeys / 16; ++i)
                pack_weights<typename S::T>(weights[tile][i], scores[tile], i);
        }
    }
};

template <class S>
RUSHES_DEVICE void attention_mma(const Problem& p) {
    const Shared queries = ptx::shared_memory(), keys = queries + S::kQueryBytes,
                 values = keys + S::kStages * S::kSlotBytes;
    static_assert(sizeof(KeyDesk<S>) <= S::kSharedBytes - S::kTileBytes, "the desk has its place");
    auto& desk = ptx::shared_object<KeyDesk<S>>(queries + S::kTileBytes);
    // A step without keys copies nothing, but is a group all the same: the waits below count groups.
    const auto load_keys = [&](int i) {
        const KeyStep<1> step = desk.step[i % 4];
        load_tile<S, S::kKeys>(keys + i % S::kStages * S::kSlotBytes, desk.k + 2 * (step.begin[0] * p.k.strides[2]),
                               p.k.strides[2], step.count[0], p.head_dim);
    };
    const auto load_values = [&](int i) {
        const KeyStep<1> step = desk.step[i % 4];
        load_tile<S, S::kKeys>(values + i % S::kStages * S::kSlotBytes, desk.v + 2 * (step.begin[0] * p.v.strides[2]),
                               p.v.strides[2], step.count[0], p.head_dim);
    };
    {
        const Item item = item_of_block(p, S::kRows);
        if (item.rows == 0) return;
        load_tile<S, S::kRows>(queries, token_address(p.q, p, item.group, item.token), p.q.strides[2], item.rows,
                               p.head_dim);
        if (ptx::thread() < 32) desk.open(p, item);
    }
    ptx::barrier();
    load_keys(0);
    if constexpr (S::kStages == 2) load_values(0);
    MmaWarp<S> warp;
    warp.begin(queries);

    // Groups of copies under way at each wait. One stage: the tile that is needed, alone. Two stages: that tile and the
    // one that was asked for after it.
    constexpr int kPending = S::kStages - 1;
    for (int i = 0; desk.step[i % 4].count[0] > 0; ++i) {  // no list is empty; were one, its rows would be 0 / 0
        ptx::wait_copies<kPending>();
        ptx::barrier();
        if constexpr (S::kStages == 2)
            load_keys(i + 1);
        else
            load_values(i);
        if (ptx::thread() < 32) desk.find(p, i + 2);  // known to all from the next barrier on
        warp.multiply_keys(queries, keys + i % S::kStages * S::kSlotBytes);
        warp.soften_step(p, desk.step[i % 4].count[0]);
        ptx::wait_copies<kPending>();
        ptx::barrier();
        if constexpr (S::kStages == 2)
            load_values(i + 1);
        else
            load_keys(i + 1);
        warp.multiply_values(values + i % S::kStages * S::kSlotBytes);
    }
    ptx::wait_copies<0>();
    warp.store(p, desk.item);
}

}  // namespace rushes::cuda
