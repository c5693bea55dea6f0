// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Where each number lies: shared memory, registers of the matrix instructions, descriptors. Pure functions of indices,
// for host and device, so that tests check them without a card. Named after the PTX ISA's pages on mma.m16n8k16,
// ldmatrix, wgmma and the tensor copy; nothing here knows the numbers themselves.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define RUSHES_HD __host__ __device__ __forceinline__
#else
#define RUSHES_HD inline
#endif

namespace rushes::cuda {

// ---- Shared memory -------------------------------------------------------------------------------------------------
//
// A tile of `rows` tokens x D channels of 2 bytes lies in panels of kPanel channels, one after another; a panel's row
// is kPanel * 2 bytes. Within a row the 16-byte chunks are permuted by the row's number, exactly as the tensor copy
// does it in its 128-byte (panels of 64) and 64-byte (panels of 32) modes, and as wgmma's descriptors expect it:
//   128-byte mode: bits 4-6 of the address ^= bits 7-9, and as a row has 128 bytes: chunk ^= row % 8
//    64-byte mode: bits 4-5 of the address ^= bits 7-8, and as a row has  64 bytes: chunk ^= row / 2 % 4
// Eight rows of one chunk, what ldmatrix fetches at a time, then lie in eight different groups of four banks.
// D = 96 takes panels of 32, as 96 is no multiple of 64.
template <int D>
struct Panels {
    static constexpr int kPanel = D % 64 == 0 ? 64 : 32;  // channels
    static constexpr int kCount = D / kPanel;
    static constexpr int kRowBytes = kPanel * 2;
    static constexpr int kRowChunks = kPanel / 8;
    static constexpr int kAtomBytes = 8 * kRowBytes;  // eight rows: the permutation's period, and wgmma's unit
    static_assert(kCount * kPanel == D, "head dimensions are padded to 64, 96, 128 or 256");

    static constexpr RUSHES_HD int swizzle(int row, int chunk) {
        return kPanel == 64 ? chunk ^ (row & 7) : chunk ^ ((row >> 1) & 3);
    }
    // Byte of the 16-byte chunk `chunk` (of D / 8) in row `row` of a tile of kRows.
    template <int kRows>
    static constexpr RUSHES_HD int offset(int row, int chunk) {
        return chunk / kRowChunks * (kRows * kRowBytes) + row * kRowBytes + swizzle(row, chunk % kRowChunks) * 16;
    }
    static constexpr RUSHES_HD int bytes(int rows) { return rows * D * 2; }

    // offset(row + 8 * n, chunk + 2 * pair) from offset(row, chunk), for a chunk of 0 or 1 and n, pair known when
    // compiled: the permutation is an exclusive or, the rest an addition, so a lane needs one register for all of them.
    template <int kRows>
    static constexpr RUSHES_HD int moved(int offset, int n, int pair) {
        constexpr int kPairs = kRowChunks / 2;
        return (offset ^ (pair % kPairs * 32)) + pair / kPairs * (kRows * kRowBytes) + n * kAtomBytes;
    }
};

// ---- mma.m16n8k16: D[16][8] += A[16][16] B[16][8] ------------------------------------------------------------------

// Row and column of element i of 4 of a lane's accumulator. wgmma's accumulator of 64 x N is the same in each of its
// four warps (rows 16 * warp ...), repeated for every 8 columns.
constexpr RUSHES_HD int accumulator_row(int lane, int i) { return lane / 4 + (i / 2) * 8; }
constexpr RUSHES_HD int accumulator_column(int lane, int i) { return (lane % 4) * 2 + i % 2; }

// A: register r of 4 holds two neighbours along k, the first of them at:
constexpr RUSHES_HD int a_row(int lane, int r) { return lane / 4 + (r % 2) * 8; }
constexpr RUSHES_HD int a_k(int lane, int r) { return (lane % 4) * 2 + (r / 2) * 8; }
// B: register r of 2 likewise.
constexpr RUSHES_HD int b_k(int lane, int r) { return (lane % 4) * 2 + r * 8; }
constexpr RUSHES_HD int b_column(int lane) { return lane / 4; }

// Two accumulators side by side (16 columns) are, rounded, an A of the next product: register r of A comes from
// accumulator a_block(r), elements a_element(r) and a_element(r) + 1.
constexpr RUSHES_HD int a_block(int r) { return r / 2; }
constexpr RUSHES_HD int a_element(int r) { return (r % 2) * 2; }

// ---- ldmatrix.x4: four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8 -----------------------
// Without .trans, register m of a lane holds (row lane / 4, columns 2 * (lane % 4) and the next) of matrix m;
// with it, (rows 2 * (lane % 4) and the next, column lane / 4).

struct RowChunk {
    int row, chunk;
};

// A = queries [16 rows][16 channels]: the registers come out in the order of a_row, a_k.
constexpr RUSHES_HD RowChunk query_address(int lane) { return {lane % 8 + (lane / 8 % 2) * 8, lane / 16}; }
// B = keys [16 keys][16 channels], k along channels: registers 0, 1 are the B of keys 0-7, and 2, 3 that of keys 8-15.
constexpr RUSHES_HD RowChunk key_address(int lane) { return {lane % 8 + (lane / 16) * 8, lane / 8 % 2}; }
// B = values [16 keys][16 channels], k along keys (.trans): 0, 1 for channels 0-7; 2, 3 for channels 8-15.
constexpr RUSHES_HD RowChunk value_address(int lane) { return {lane % 8 + (lane / 8 % 2) * 8, lane / 16}; }

// ---- wgmma's descriptor of an operand in shared memory -------------------------------------------------------------
// bits 0-13 address / 16, 16-29 leading offset / 16, 32-45 stride offset / 16, 49-51 base offset (0: tiles begin at a
// multiple of 1024 bytes), 62-63 mode: 1 for 128-byte, 2 for 64-byte.
template <int D>
constexpr RUSHES_HD std::uint64_t descriptor(std::uint32_t address, std::uint32_t leading, std::uint32_t stride) {
    return (std::uint64_t{address & 0x3ffff} >> 4) | (std::uint64_t{leading >> 4} << 16) |
           (std::uint64_t{stride >> 4} << 32) | (std::uint64_t{Panels<D>::kPanel == 64 ? 1u : 2u} << 62);
}

// Queries and keys: k runs along the channels, contiguous in memory ("K-major"). Stride: from eight rows to the next
// eight. The leading offset is not used in the swizzled modes. Step s of k (16 channels) begins at k_step_bytes.
template <int D>
constexpr RUSHES_HD std::uint64_t k_major(std::uint32_t address) {
    return descriptor<D>(address, 16, Panels<D>::kAtomBytes);
}
template <int D, int kRows>
constexpr RUSHES_HD int k_step_bytes(int step) {
    constexpr int kSteps = Panels<D>::kPanel / 16;
    return step / kSteps * (kRows * Panels<D>::kRowBytes) + step % kSteps * 32;
}

// Values: k runs along the keys, the columns (channels) are contiguous ("MN-major", transposed B). Leading: from one
// panel of channels to the next. Stride: from eight keys to the next eight. Step s of k begins 16 rows further.
template <int D, int kRows>
constexpr RUSHES_HD std::uint64_t n_major(std::uint32_t address) {
    return descriptor<D>(address, kRows * Panels<D>::kRowBytes, Panels<D>::kAtomBytes);
}
template <int D>
constexpr RUSHES_HD int n_step_bytes(int step) {
    return step * 16 * Panels<D>::kRowBytes;
}

}  // namespace rushes::cuda
