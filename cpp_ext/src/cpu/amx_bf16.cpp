// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Products by AMX tiles: 16 x 16 sums of 32 products each. Two by two tiles of sums take two tiles of either side, so
// each load serves two products. Strips hold 32 keys: one tile's worth of depth for the values. Tiles 0-3 are sums,
// 4-5 rows, 6-7 keys or values.
#include "dot_bf16.h"

namespace rushes::cpu {
namespace {

struct alignas(64) TileConfig {
    std::uint8_t palette = 1;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// GCC's intrinsics do not tell it what memory they read, so it might store what they need only afterwards.
RUSHES_INLINE void stores_are_done() { __asm__ volatile("" ::: "memory"); }

struct Engine : PairDot {
    static constexpr const char* kName = "amx_bf16";
    static constexpr std::int64_t kDepthMultiple = 32, kStripKeys = 32, kRowMultiple = 32;
    static constexpr int kPanelVectors = 1;
    static constexpr std::int64_t kTileRows = 256, kGroupRows = 64, kBlockStrips = 4;

    static void enter() {
        Avx512::enter();
        const TileConfig config;
        __asm__ volatile("" ::"r"(&config) : "memory");
        _tile_loadconfig(&config);
    }
    static void leave() {
        _tile_release();
        Avx512::leave();
    }

    // Rows inside, so that a strip comes from the second-level cache once and is then read from the first.
    static void multiply_keys(const Word* q, std::int64_t depth, std::int64_t rows, const Word* const* k,
                              std::int64_t count, float* scores, std::int64_t ld) {
        stores_are_done();
        for (std::int64_t s = 0; s < count; ++s)
            for (std::int64_t r = 0; r < rows; r += 32)
                keys_step(q + r * depth, depth, rows - r > 16, k[s], scores + r * ld + s * kStripKeys, ld);
    }

    static RUSHES_INLINE void keys_step(const Word* q, std::int64_t depth, bool tall, const Word* left, float* target,
                                        std::int64_t ld) {
        const Word* right = left + depth * 16;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (std::int64_t c = 0; c < depth; c += 16) {
            _tile_loadd(6, left + c * 16, 64);
            _tile_loadd(4, q + c, depth * 4);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, right + c * 16, 64);
            _tile_dpbf16ps(1, 4, 7);
            if (tall) {
                _tile_loadd(5, q + 16 * depth + c, depth * 4);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, target, ld * 4);
        _tile_stored(1, target + 16, ld * 4);
        if (tall) {
            _tile_stored(2, target + 16 * ld, ld * 4);
            _tile_stored(3, target + 16 * ld + 16, ld * 4);
        }
    }

    static void multiply_values(const Word* p, std::int64_t p_row, std::int64_t rows, const Word* const* v,
                                std::int64_t count, float* sums, std::int64_t channels, bool first) {
        stores_are_done();
        for (std::int64_t c = 0; c < channels; c += 32)
            for (std::int64_t r = 0; r < rows; r += 32)
                values_step(p + r * p_row, p_row, rows - r > 16, v, count, c, sums + r * channels + c, channels, first);
    }

    static RUSHES_INLINE void values_step(const Word* p, std::int64_t p_row, bool tall, const Word* const* v,
                                          std::int64_t count, std::int64_t c, float* target, std::int64_t channels,
                                          bool first) {
        const bool wide = c + 16 < channels;
        load_sums(target, channels, first, tall, wide);
        for (std::int64_t s = 0; s < count; ++s) {
            const Word* panel = v[s] + c * (kStripKeys / 2);  // [16 key words][16 channels], then the next panel
            _tile_loadd(6, panel, 64);
            _tile_loadd(4, p + s * 16, p_row * 4);
            _tile_dpbf16ps(0, 4, 6);
            if (wide) {
                _tile_loadd(7, panel + 256, 64);
                _tile_dpbf16ps(1, 4, 7);
            }
            if (tall) {
                _tile_loadd(5, p + 16 * p_row + s * 16, p_row * 4);
                _tile_dpbf16ps(2, 5, 6);
                if (wide) _tile_dpbf16ps(3, 5, 7);
            }
        }
        store_sums(target, channels, tall, wide);
    }

    static RUSHES_INLINE void load_sums(const float* sums, std::int64_t ld, bool first, bool tall, bool wide) {
        if (first) {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            return;
        }
        _tile_loadd(0, sums, ld * 4);
        if (wide) _tile_loadd(1, sums + 16, ld * 4);
        if (tall) _tile_loadd(2, sums + 16 * ld, ld * 4);
        if (tall && wide) _tile_loadd(3, sums + 16 * ld + 16, ld * 4);
    }

    static RUSHES_INLINE void store_sums(float* sums, std::int64_t ld, bool tall, bool wide) {
        _tile_stored(0, sums, ld * 4);
        if (wide) _tile_stored(1, sums + 16, ld * 4);
        if (tall) _tile_stored(2, sums + 16 * ld, ld * 4);
        if (tall && wide) _tile_stored(3, sums + 16 * ld + 16, ld * 4);
    }
};

}  // namespace

const KernelTable* amx_bf16_table() noexcept { return Tile<Engine>::table(); }

}  // namespace rushes::cpu
