// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Hopper's instructions on the host. For cuda_emulation.h only.
#pragma once

namespace rushes::cuda::ptx {
namespace detail {

inline emulation::MBarrier& mbarrier(Shared address) {
    shared(address, 8);
    if (address % 8) emulation::fail("a barrier that is not aligned");
    auto& all = machine().mbarriers;
    const auto found = all.find(address);
    if (found == all.end()) emulation::fail("a barrier that has not begun");
    return found->second;
}
inline void settle(emulation::MBarrier& barrier) {
    if (barrier.pending < 0 || barrier.bytes < 0) emulation::fail("more arrivals or bytes than a barrier expects");
    if (barrier.pending > 0 || barrier.bytes > 0) return;
    barrier.pending = barrier.expected;
    ++barrier.phase;
    machine().wake(barrier.waiting);
}

// The copy's permutation, from its definition on address bits: in 128-byte mode bits 4-6 ^= bits 7-9, in 64-byte mode
// bits 4-5 ^= bits 7-8.
inline Shared permuted(Shared address, int row_bytes) {
    return row_bytes == 128 ? address ^ (address >> 7 & 7) << 4 : address ^ (address >> 7 & 3) << 4;
}

inline void copy_box(Shared to, const TensorMap& map, const std::int64_t (&corner)[4], Shared barrier) {
    const int row_bytes = map.box_channels * 2;
    if (to % (row_bytes * 8)) emulation::fail("a box that begins within a period of the permutation");
    for (int token = 0; token < map.box_tokens; ++token)
        for (int channel = 0; channel < map.box_channels; ++channel) {
            const std::int64_t at[4] = {corner[0] + channel, corner[1] + token, corner[2], corner[3]};
            bool inside = true;
            std::int64_t from = 0;
            for (int i = 0; i < 4; ++i) {
                inside &= at[i] >= 0 && at[i] < map.sizes[i];
                from += at[i] * map.bytes[i];
            }
            const Shared place = permuted(to + static_cast<Shared>(token * row_bytes + channel * 2), row_bytes);
            const std::uint16_t zero = 0;
            std::memcpy(shared(place, 2), inside ? map.data + from : reinterpret_cast<const unsigned char*>(&zero), 2);
        }
    auto& waited = mbarrier(barrier);
    waited.bytes -= map.box_channels * 2 * map.box_tokens;
    settle(waited);
}

// An operand in shared memory, element (mn, k), by the ISA's canonical layouts in units of 16 bytes:
//   k-major:  ((8, n), 2)        strides ((W, stride), 1)     W = 8 (128-byte mode) or 4 (64-byte)
//   mn-major: ((W, n), (8, 2))   strides ((1, leading), (W, stride))
inline std::uint16_t element(std::uint64_t descriptor, bool mn_major, int mn, int k) {
    const Shared start = static_cast<Shared>(descriptor & 0x3fff) << 4;
    const Shared leading = static_cast<Shared>(descriptor >> 16 & 0x3fff) << 4;
    const Shared stride = static_cast<Shared>(descriptor >> 32 & 0x3fff) << 4;
    const int mode = static_cast<int>(descriptor >> 62), width = mode == 1 ? 8 : 4;
    if (mode != 1 && mode != 2) emulation::fail("a mode that the kernels do not use");
    if (descriptor >> 49 & 7) emulation::fail("a base offset that the kernels do not use");
    const auto at = [&](int value) { return static_cast<Shared>(value); };
    const Shared address = mn_major ? start + at(mn / 8 % width) * 16 + at(mn / 8 / width) * leading +
                                          at(k % 8) * at(width) * 16 + at(k / 8) * stride + at(mn % 8) * 2
                                    : start + at(mn % 8) * at(width) * 16 + at(mn / 8) * stride + at(k) * 2;
    std::uint16_t value;
    std::memcpy(&value, shared(permuted(address, width * 16), 2), 2);
    return value;
}

struct Product {
    float* d;
    const std::uint32_t* a;  // null: in shared memory
    std::uint64_t a_shared, b;
    bool adds;
};

// The rows of one warp: it reads all of b, and of a what it needs.
template <class T, int N>
void carry_out(const std::vector<Product>& threads, int warp) {
    const int first_row = warp * 16, first_thread = warp * 32;
    std::vector<float> a(64 * 16), b(16 * N);
    for (int k = 0; k < 16; ++k) {
        for (int n = 0; n < N; ++n) b[k * N + n] = number(T{}, element(threads[0].b, threads[0].a != nullptr, n, k));
        if (!threads[0].a)
            for (int m = first_row; m < first_row + 16; ++m) a[m * 16 + k] = number(T{}, element(threads[0].a_shared, false, m, k));
    }
    for (int t = first_thread; threads[0].a && t < first_thread + 32; ++t)
        for (int i = 0; i < 8; ++i) {
            const int row = t / 32 * 16 + t % 32 / 4 + (i / 2 % 2) * 8, column = t % 4 * 2 + i % 2 + i / 4 * 8;
            a[row * 16 + column] = half_of<T>(threads[t].a[i / 2], i % 2);
        }
    for (int t = first_thread; t < first_thread + 32; ++t)
        for (int i = 0; i < N / 2; ++i) {
            const int row = t / 32 * 16 + t % 32 / 4 + (i / 2 % 2) * 8, column = i / 4 * 8 + t % 4 * 2 + i % 2;
            float sum = threads[t].adds ? threads[t].d[i] : 0.0f;
            for (int k = 0; k < 16; ++k) sum += a[row * 16 + k] * b[k * N + column];
            threads[t].d[i] = sum;
        }
}

template <class T, int N>
void multiply(Product product) {
    Machine& m = machine();
    auto& group = m.groups[m.thread() / 128];
    m.meet(group.meeting, 128, m.thread() % 128, &product, [&](void** asks) {
        std::vector<Product> all;
        for (int t = 0; t < 128; ++t) all.push_back(*static_cast<Product*>(asks[t]));
        for (const auto& one : all)
            if (one.b != all[0].b || one.a_shared != all[0].a_shared) emulation::fail("descriptors that differ");
        group.open.push_back([all](int warp) { carry_out<T, N>(all, warp); });
    });
}

inline void carry_out_all_but(emulation::Machine::WarpGroup& group, int warp, std::size_t pending) {
    std::size_t& done = group.done[warp];
    while (done + pending < group.closed.size())
        for (const auto& product : group.closed[done++]) product(warp);
}

}  // namespace detail

inline void barrier_begin(Shared barrier, int arrivals) {
    detail::shared(barrier, 8);
    detail::machine().mbarriers[barrier] = {arrivals, arrivals, 0, 0, {}};
}
inline void barriers_begun() {}
inline void barrier_arrive(Shared barrier) {
    auto& found = detail::mbarrier(barrier);
    --found.pending;
    detail::settle(found);
    detail::machine().dawdle();
}
inline void barrier_expect(Shared barrier, int bytes) {
    auto& found = detail::mbarrier(barrier);
    found.bytes += bytes;
    --found.pending;
    detail::settle(found);
}
inline void barrier_wait(Shared barrier, int parity) {
    auto& found = detail::mbarrier(barrier);
    while ((found.phase & 1) == parity) detail::machine().block_on(found.waiting);
}

namespace detail {
inline void come(int name, int threads, bool waits) {
    Machine& m = machine();
    auto& meeting = m.named[name];
    if (++meeting.arrived == threads) {
        meeting.arrived = 0;
        m.wake(meeting.waiting);
    } else if (waits) {
        m.block_on(meeting.waiting);
    }
}
}  // namespace detail
inline void named_sync(int name, int threads) { detail::come(name, threads, true); }
inline void named_arrive(int name, int threads) { detail::come(name, threads, false); }

inline void prefetch(const TensorMap&) {}
inline void load_box(Shared to, const TensorMap& map, int channel, int token, int head, int batch, Shared barrier) {
    const TensorMap* tensor = &map;
    detail::machine().behind.push_back(
        [=] { detail::copy_box(to, *tensor, {channel, token, head, batch}, barrier); });
}

template <int>
void give_registers() {}
template <int>
void take_registers() {}

inline void products_begin() {}
inline void products_commit() {
    auto& m = detail::machine();
    auto& group = m.groups[m.thread() / 128];
    m.meet(group.meeting, 128, m.thread() % 128, nullptr, [&](void**) {
        group.closed.push_back(std::move(group.open));
        group.open.clear();
        if (!m.acts_now()) return;
        for (int warp = 0; warp < 4; ++warp) detail::carry_out_all_but(group, warp, 0);
    });
}
// A warp waits for its own rows only: those of the others may or may not be there by then.
template <int kPending>
void products_wait() {
    auto& m = detail::machine();
    m.dawdle();
    detail::with_warp(nullptr, [&](void**) {
        detail::carry_out_all_but(m.groups[m.thread() / 128], m.thread() / 32 % 4, kPending);
    });
}
template <int kCount>
void touch(float (&)[kCount]) {}

template <class T, int kCount>
void multiply_shared(float (&d)[kCount], std::uint64_t a, std::uint64_t b, bool adds) {
    detail::multiply<T, kCount * 2>({d, nullptr, a, b, adds});
}
template <class T, int kCount>
void multiply_registers(float (&d)[kCount], const std::uint32_t (&a)[4], std::uint64_t b) {
    detail::multiply<T, kCount * 2>({d, a, 0, b, true});
}

}  // namespace rushes::cuda::ptx
