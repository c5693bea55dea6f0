// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// wgmma.mma_async for the widths that the kernels use: 64 rows x N columns x 16. The instruction names each accumulator
// register, hence the lists. For ptx_sm90.h only.
//   multiply_shared     d (+)= a b, a and b in shared memory, k contiguous in both (queries, keys)
//   multiply_registers  d += a b, a in registers, b's columns contiguous (weights, values)
#pragma once

#define RUSHES_R4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define RUSHES_R16(d, i) RUSHES_R4(d, i), RUSHES_R4(d, i + 4), RUSHES_R4(d, i + 8), RUSHES_R4(d, i + 12)

#define RUSHES_D64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define RUSHES_C64 \
    RUSHES_R16(d, 0), RUSHES_R16(d, 16)
#define RUSHES_D96 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define RUSHES_C96 \
    RUSHES_R16(d, 0), RUSHES_R16(d, 16), RUSHES_R16(d, 32)
#define RUSHES_D128 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define RUSHES_C128 \
    RUSHES_R16(d, 0), RUSHES_R16(d, 16), RUSHES_R16(d, 32), RUSHES_R16(d, 48)
#define RUSHES_D256 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define RUSHES_C256 \
    RUSHES_R16(d, 0), RUSHES_R16(d, 16), RUSHES_R16(d, 32), RUSHES_R16(d, 48), \
    RUSHES_R16(d, 64), RUSHES_R16(d, 80), RUSHES_R16(d, 96), RUSHES_R16(d, 112)

namespace rushes::cuda::ptx {

template <class T, int N>
struct Wgmma;

// The scale of d is a predicate: 0 begins a new sum.
#define RUSHES_WGMMA_SHARED(Type, name, N, A, B, S) \
    static RUSHES_DEVICE void shared(float (&d)[N / 2], std::uint64_t a, std::uint64_t b, int adds) { \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" S ", 0;\n" \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." name \
                     "." name " {" RUSHES_D##N "}, %" A ", %" B ", p, 1, 1, 0, 0;\n}\n" \
                     : RUSHES_C##N \
                     : "l"(a), "l"(b), "r"(adds)); \
    }
#define RUSHES_WGMMA_REGISTERS(Type, name, N, A0, A1, A2, A3, B) \
    static RUSHES_DEVICE void registers(float (&d)[N / 2], const std::uint32_t (&a)[4], std::uint64_t b) { \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." name "." name " {" RUSHES_D##N "}, {%" A0 \
                     ", %" A1 ", %" A2 ", %" A3 "}, %" B ", 1, 1, 1, 1;\n" \
                     : RUSHES_C##N \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)); \
    }

#define RUSHES_WGMMA_64(Type, name) \
    template <> \
    struct Wgmma<Type, 64> { \
        RUSHES_WGMMA_SHARED(Type, name, 64, "32", "33", "34") \
    RUSHES_WGMMA_REGISTERS(Type, name, 64, "32", "33", "34", "35", "36") \
    };
#define RUSHES_WGMMA_96(Type, name) \
    template <> \
    struct Wgmma<Type, 96> { \
        RUSHES_WGMMA_REGISTERS(Type, name, 96, "48", "49", "50", "51", "52") \
    };
#define RUSHES_WGMMA_128(Type, name) \
    template <> \
    struct Wgmma<Type, 128> { \
        RUSHES_WGMMA_SHARED(Type, name, 128, "64", "65", "66") \
    RUSHES_WGMMA_REGISTERS(Type, name, 128, "64", "65", "66", "67", "68") \
    };
#define RUSHES_WGMMA_256(Type, name) \
    template <> \
    struct Wgmma<Type, 256> { \
        RUSHES_WGMMA_REGISTERS(Type, name, 256, "128", "129", "130", "131", "132") \
    };

#define RUSHES_WGMMA(N) \
    RUSHES_WGMMA_##N(BFloat16, "bf16"); \
    RUSHES_WGMMA_##N(Float16, "f16")
RUSHES_WGMMA(64);
RUSHES_WGMMA(96);
RUSHES_WGMMA(128);
RUSHES_WGMMA(256);

template <class T, int kCount>
RUSHES_DEVICE void multiply_shared(float (&d)[kCount], std::uint64_t a, std::uint64_t b, bool adds) {
    Wgmma<T, kCount * 2>::shared(d, a, b, adds);
}
template <class T, int kCount>
RUSHES_DEVICE void multiply_registers(float (&d)[kCount], const std::uint32_t (&a)[4], std::uint64_t b) {
    Wgmma<T, kCount * 2>::registers(d, a, b);
}

}  // namespace rushes::cuda::ptx
