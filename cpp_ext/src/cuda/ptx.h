// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// The instructions of sm_80 and newer that the kernels use, one function each; ptx_sm90.h has Hopper's. The kernels
// call nothing else of the machine, so that a test can compile their very source for the host: with
// RUSHES_CUDA_EMULATION defined, cuda_emulation.h supplies the same functions, written from the PTX ISA independently
// of these.
#pragma once

#include <cstdint>

#include "layout.h"

#if defined(RUSHES_CUDA_EMULATION)
#define RUSHES_DEVICE inline
#define RUSHES_UNROLL
#include "cuda_emulation.h"
#else
#define RUSHES_DEVICE __device__ __forceinline__
#define RUSHES_UNROLL _Pragma("unroll")

namespace rushes::cuda {

struct BFloat16 {};  // names of types; the numbers themselves travel in 32-bit pairs
struct Float16 {};

struct alignas(16) Words {
    std::uint32_t word[4];
};

using Shared = std::uint32_t;  // address in shared memory

namespace ptx {

RUSHES_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
RUSHES_DEVICE std::int64_t block() { return blockIdx.x; }

RUSHES_DEVICE Shared shared_memory() {
    extern __shared__ __align__(128) unsigned char memory[];
    return static_cast<Shared>(__cvta_generic_to_shared(memory));
}

// The object at an address in shared memory.
template <class Object>
RUSHES_DEVICE Object& shared_object(Shared address) {
    return *static_cast<Object*>(__cvta_shared_to_generic(address));
}

RUSHES_DEVICE void barrier() { __syncthreads(); }
RUSHES_DEVICE void barrier_of_warp() { __syncwarp(); }

template <class Value>
RUSHES_DEVICE Value shuffle(Value value, int lane) {
    return __shfl_sync(0xffffffffu, value, lane);
}
template <class Value>
RUSHES_DEVICE Value shuffle_xor(Value value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}
RUSHES_DEVICE bool any_of_warp(bool value) { return __any_sync(0xffffffffu, value); }

// thread(), but the compiler does not know that it is the same number each time, and so keeps nothing that is computed
// from it in registers. Unsigned: quotients of what might be negative take three instructions more.
RUSHES_DEVICE unsigned opaque_thread() {
    unsigned value = threadIdx.x;
    asm volatile("" : "+r"(value));
    return value;
}

// 16 bytes, or 16 zeros: with a source size of 0 nothing is read.
RUSHES_DEVICE void copy_async(Shared to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
}
RUSHES_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Until at most kPending of this thread's groups are under way.
template <int kPending>
RUSHES_DEVICE void wait_copies() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

RUSHES_DEVICE void load_matrices(std::uint32_t (&r)[4], Shared from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}
RUSHES_DEVICE void load_matrices_transposed(std::uint32_t (&r)[4], Shared from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

// d[16][8] += a[16][16] b[16][8]. d: four elements of a longer array of accumulators.
template <class T>
RUSHES_DEVICE void multiply(float* d, const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1);
template <>
RUSHES_DEVICE void multiply<BFloat16>(float* d, const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
RUSHES_DEVICE void multiply<Float16>(float* d, const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two numbers rounded to nearest even; `low` in the lower half (the neighbour with the smaller index).
template <class T>
RUSHES_DEVICE std::uint32_t pack(float low, float high);
template <>
RUSHES_DEVICE std::uint32_t pack<BFloat16>(float low, float high) {
    std::uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
template <>
RUSHES_DEVICE std::uint32_t pack<Float16>(float low, float high) {
    std::uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// 2^x, two units in the last place; numbers under 2^-126 become zero.
RUSHES_DEVICE float exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

RUSHES_DEVICE void store_words(void* to, const Words& words) { *static_cast<Words*>(to) = words; }

}  // namespace ptx
}  // namespace rushes::cuda
#endif
