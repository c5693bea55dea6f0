// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// The functions of ptx.h and ptx_sm90.h on the host. Written from the PTX ISA's tables of fragments and layouts, and on
// purpose without layout.h: that header is what is checked.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>

#include "machine.h"

namespace rushes::cuda {

struct BFloat16 {};
struct Float16 {};

struct alignas(16) Words {
    std::uint32_t word[4];
};

using Shared = std::uint32_t;

// As the driver encodes it, in words: a tensor of 2-byte elements [batch][head][token][channel].
struct TensorMap {
    const unsigned char* data;
    std::int64_t sizes[4], bytes[4];  // channel, token, head, batch; byte strides (the first is 2)
    int box_channels, box_tokens;     // 64 channels: 128-byte mode; 32: 64-byte mode
};

namespace ptx {
namespace detail {

using emulation::Machine;

constexpr Shared kBase = 1024 * 3 + 128;  // an address that is aligned to no more than the kernels may expect

inline Machine& machine() { return *Machine::now; }
inline unsigned char* shared(Shared address, std::size_t bytes) {
    if (address < kBase || address - kBase + bytes > machine().shared.size()) emulation::fail("beyond shared memory");
    return machine().shared.data() + (address - kBase);
}
inline int lane() { return machine().thread() % 32; }
template <class Work>
void with_warp(void* thing, Work work) {
    Machine& m = machine();
    m.meet(m.warps[m.thread() / 32].meeting, 32, lane(), thing, work);
}

inline float number(BFloat16, std::uint16_t bits) {
    const std::uint32_t wide = std::uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}
inline float number(Float16, std::uint16_t bits) {
    _Float16 value;
    std::memcpy(&value, &bits, 2);
    return static_cast<float>(value);
}
inline std::uint16_t bits(BFloat16, float value) {
    std::uint32_t wide;
    std::memcpy(&wide, &value, 4);
    if (value != value) return 0x7fff;
    return static_cast<std::uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
}
inline std::uint16_t bits(Float16, float value) {
    const _Float16 narrow = static_cast<_Float16>(value);
    std::uint16_t result;
    std::memcpy(&result, &narrow, 2);
    return result;
}
template <class T>
float half_of(std::uint32_t pair, int which) {
    return number(T{}, static_cast<std::uint16_t>(pair >> (16 * which)));
}

struct Copy {
    Shared to;
    const void* from;
    bool valid;
    void act() const {
        if (valid)
            std::memcpy(shared(to, 16), from, 16);
        else
            std::memset(shared(to, 16), 0, 16);
    }
};
// Copies of a thread: not yet closed into a group, and closed groups.
struct Copies {
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> closed;
};
inline Copies& copies() {
    static std::map<std::pair<Machine*, int>, Copies> all;
    return all[{&machine(), machine().thread()}];
}

}  // namespace detail

inline int thread() { return detail::machine().thread(); }
inline std::int64_t block() { return detail::machine().block; }
inline Shared shared_memory() { return detail::kBase; }
template <class Object>
Object& shared_object(Shared address) {
    return *reinterpret_cast<Object*>(detail::shared(address, sizeof(Object)));
}

inline void barrier() {
    auto& m = detail::machine();
    m.meet(m.all, static_cast<int>(m.warps.size()) * 32, m.thread(), nullptr, [](void**) {});
}
inline void barrier_of_warp() {
    detail::with_warp(nullptr, [](void**) {});
}

template <class Value>
Value shuffle(Value value, int lane) {
    struct Ask {
        Value value, answer;
        int lane;
    } ask{value, value, lane};
    detail::with_warp(&ask, [](void** asks) {
        for (int i = 0; i < 32; ++i) {
            Ask& own = *static_cast<Ask*>(asks[i]);
            own.answer = static_cast<Ask*>(asks[own.lane])->value;
        }
    });
    return ask.answer;
}
template <class Value>
Value shuffle_xor(Value value, int mask) {
    return shuffle(value, detail::lane() ^ mask);
}
inline bool any_of_warp(bool value) {
    bool answer = value;
    detail::with_warp(&answer, [](void** asks) {
        bool any = false;
        for (int i = 0; i < 32; ++i) any |= *static_cast<bool*>(asks[i]);
        for (int i = 0; i < 32; ++i) *static_cast<bool*>(asks[i]) = any;
    });
    return answer;
}

inline unsigned opaque_thread() { return static_cast<unsigned>(thread()); }

inline void copy_async(Shared to, const void* from, bool valid) {
    if (to % 16 || reinterpret_cast<std::uintptr_t>(from) % 16) emulation::fail("a copy that is not aligned");
    const detail::Copy copy{to, from, valid};
    if (detail::machine().acts_now())
        copy.act();
    else
        detail::copies().open.push_back(copy);
}
inline void commit_copies() {
    auto& own = detail::copies();
    own.closed.push_back(std::move(own.open));
    own.open.clear();
}
template <int kPending>
void wait_copies() {
    auto& own = detail::copies();
    detail::machine().dawdle();
    while (own.closed.size() > kPending) {
        for (const auto& copy : own.closed.front()) copy.act();
        own.closed.pop_front();
    }
}

namespace detail {
// ldmatrix: lanes 8 m ... 8 m + 7 name the rows of matrix m.
inline void load_matrices(std::uint32_t (&r)[4], Shared from, bool transposed) {
    struct Ask {
        std::uint32_t* r;
        Shared from;
    } ask{r, from};
    with_warp(&ask, [transposed](void** asks) {
        for (int matrix = 0; matrix < 4; ++matrix) {
            std::uint16_t value[8][8];
            for (int row = 0; row < 8; ++row) {
                const Shared at = static_cast<Ask*>(asks[matrix * 8 + row])->from;
                if (at % 16) emulation::fail("a matrix row that is not aligned");
                std::memcpy(value[row], shared(at, 16), 16);
            }
            for (int lane = 0; lane < 32; ++lane) {
                const int a = lane / 4, b = lane % 4 * 2;
                const std::uint32_t low = transposed ? value[b][a] : value[a][b];
                const std::uint32_t high = transposed ? value[b + 1][a] : value[a][b + 1];
                static_cast<Ask*>(asks[lane])->r[matrix] = low | high << 16;
            }
        }
    });
}
}  // namespace detail
inline void load_matrices(std::uint32_t (&r)[4], Shared from) { detail::load_matrices(r, from, false); }
inline void load_matrices_transposed(std::uint32_t (&r)[4], Shared from) { detail::load_matrices(r, from, true); }

template <class T>
void multiply(float* d, const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
    struct Ask {
        float* d;
        const std::uint32_t* a;
        std::uint32_t b[2];
    } ask{d, a, {b0, b1}};
    detail::with_warp(&ask, [](void** asks) {
        float a[16][16], b[16][8];
        for (int lane = 0; lane < 32; ++lane) {
            const Ask& own = *static_cast<Ask*>(asks[lane]);
            const int group = lane >> 2, in_group = lane & 3;
            for (int i = 0; i < 8; ++i) {  // the ISA counts elements a0 ... a7
                const int row = (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
                const int column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
                a[row][column] = detail::half_of<T>(own.a[i / 2], i % 2);
            }
            for (int i = 0; i < 4; ++i)
                b[in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0)][group] = detail::half_of<T>(own.b[i / 2], i % 2);
        }
        for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < 4; ++i) {
                const int row = i < 2 ? lane >> 2 : (lane >> 2) + 8, column = (lane & 3) * 2 + (i & 1);
                float& sum = static_cast<Ask*>(asks[lane])->d[i];
                for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
            }
    });
}

template <class T>
std::uint32_t pack(float low, float high) {
    return detail::bits(T{}, low) | std::uint32_t{detail::bits(T{}, high)} << 16;
}
inline float exp2(float x) { return std::exp2(x); }
inline void store_words(void* to, const Words& words) {
    if (reinterpret_cast<std::uintptr_t>(to) % 16) emulation::fail("a store that is not aligned");
    std::memcpy(to, &words, 16);
}

}  // namespace ptx
}  // namespace rushes::cuda

#include "cuda_emulation_sm90.h"
