// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// One query tile against a list of key strips by AMX tiles: 16 x 16 sums of 16 products of 4 bytes each. The algorithm is
// that of tile.h; what differs is where things lie.
//
// Turned     Scores lie as [keys][queries] and sums as [channels][queries]: a lane of a register is a query all the way,
//            so that maxima and sums of weights need nothing across lanes, and keys are packed by copying rows.
// Walk       Runs of kRun strips stay in the second-level cache while the tile's groups of 32 queries pass over them one
//            after another; a group's state stays in the first-level cache for a run. The next run is prefetched.
// One pass   Weights are taken against the maximum so far; only when one comes out above 2^8 is the strip done again. The
//            maxima are whole powers of two, so that what came before is rescaled without error.
// Not here   Weaving the vector code between the tiles' products: it gains nothing, as the processors that were measured
//            do float32 arithmetic at half speed while tiles are in use.
#pragma once

#include "amx_pack.h"

namespace rushes::cpu {
namespace {

struct alignas(64) TileConfig {
    std::uint8_t palette = 1;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// GCC's intrinsics do not tell it what memory they touch, so it might move other accesses past them.
RUSHES_INLINE void memory_is_used() { __asm__ volatile("" ::: "memory"); }

// The sums of `AmxTile::multiply`. The numbers of tiles are part of the instruction's name.
struct Bf16Product {
    static RUSHES_INLINE void ac() { _tile_dpbf16ps(0, 4, 6); }
    static RUSHES_INLINE void ad() { _tile_dpbf16ps(1, 4, 7); }
    static RUSHES_INLINE void bc() { _tile_dpbf16ps(2, 5, 6); }
    static RUSHES_INLINE void bd() { _tile_dpbf16ps(3, 5, 7); }
};

template <class S>
struct AmxTile {
    static constexpr std::int64_t kBlock = 8, kRun = 32, kGroupRows = 32, kTileRows = 256;
    static constexpr std::int64_t kScoreWords = 4 * kTileWords, kWeightWords = 2 * kTileWords;  // of a strip

    static std::int64_t chunks(std::int64_t head_dim) { return (head_dim + S::kChunk - 1) / S::kChunk; }
    static std::int64_t channel_pairs(std::int64_t head_dim) { return (head_dim + 31) / 32; }  // pairs of blocks of 16
    static std::size_t k_strip_words(std::int64_t d) {
        return static_cast<std::size_t>(chunks(d) * 2 * kTileWords + S::kScaleWords);
    }
    static std::size_t v_strip_words(std::int64_t d) {
        return static_cast<std::size_t>(channel_pairs(d) * 2 * kTileWords);
    }

    // Running state of a tile's queries and where its pieces lie in the thread's scratch memory.
    struct Work {
        Word* q;         // [groups][chunks][2] tiles
        float* sums;     // [groups][pairs of blocks of channels][2][2] tiles
        float* maxima;   // [queries], times scale and log2(e), rounded up
        float* weights;  // [queries], sum of the weights
        float* factors;  // [queries], from products to powers of two
        float* scores;   // [2 strips][2 halves of the queries][32 keys][16 queries]
        Word* p;         // [strips of a block][2] tiles
    };

    static std::size_t carve(char* base, std::int64_t d, Work& w) {
        std::size_t at = 0;
        const auto take = [&](std::int64_t words) {
            char* p = base ? base + at : nullptr;
            at += static_cast<std::size_t>((words + 15) / 16 * 64);
            return p;
        };
        const auto floats = [&](std::int64_t words) { return reinterpret_cast<float*>(take(words)); };
        constexpr std::int64_t kGroups = kTileRows / kGroupRows;
        w.q = reinterpret_cast<Word*>(take(kGroups * chunks(d) * 2 * kTileWords));
        w.sums = floats(kGroups * channel_pairs(d) * 4 * kTileWords);
        w.maxima = floats(kTileRows);
        w.weights = floats(kTileRows);
        w.factors = floats(kTileRows);
        w.scores = floats(2 * kScoreWords);
        w.p = reinterpret_cast<Word*>(take(kBlock * kWeightWords));
        return at;
    }
    static std::size_t scratch_bytes(std::int64_t d) {
        Work w;
        return carve(nullptr, d, w);
    }

    // Where the walk over runs of strips, groups of queries and strips is.
    struct Place {
        std::int64_t run, group, strip;  // first strip of the run; strip of the list
        bool wide;                       // more than 16 queries
        std::int64_t slot;               // of the scores
    };
    struct Walk {
        const TileTask& t;
        Work w;
        std::int64_t chunks, pairs, groups;

        std::int64_t run_end(std::int64_t run) const {
            return run + kRun < t.strip_count ? run + kRun : t.strip_count;
        }
        bool is_wide(std::int64_t group) const { return t.rows - group * kGroupRows > 16; }
        bool advance(Place& p) const {
            p.slot ^= 1;
            if (++p.strip < run_end(p.run)) return true;
            if (++p.group == groups) {
                p.group = 0;
                p.run = run_end(p.run);
                if (p.run == t.strip_count) return false;
            }
            p.strip = p.run;
            p.wide = is_wide(p.group);
            return true;
        }
        const Word* keys(std::int64_t strip) const {
            return t.packed_k + t.strips[strip].index * static_cast<std::int64_t>(k_strip_words(t.head_dim));
        }
        const Word* values(std::int64_t strip) const {
            return t.packed_v + t.strips[strip].index * static_cast<std::int64_t>(v_strip_words(t.head_dim));
        }
        const Word* queries(std::int64_t group) const { return w.q + group * chunks * 2 * kTileWords; }
        float* sums(std::int64_t group) const { return w.sums + group * pairs * 4 * kTileWords; }
        float* scores(const Place& p) const { return w.scores + p.slot * kScoreWords; }
        // Of the strip at p; those of a block follow each other.
        Word* weights(const Place& p) const { return w.p + (p.strip - p.run) % kBlock * kWeightWords; }
    };

    // Scores of a strip to weights of 16 queries and their sum. Returns whose weights are too large.
    static __mmask16 soften(const Walk& r, const Place& y, int half, __m512& total) {
        const std::int64_t row = y.group * kGroupRows + half * 16;
        const __m512 factor = _mm512_loadu_ps(r.w.factors + row);
        const __m512 offset = _mm512_xor_ps(_mm512_loadu_ps(r.w.maxima + row), _mm512_set1_ps(-0.0f));
        const float *from = r.scores(y) + half * 2 * kTileWords, *scales = S::scales(r.keys(y.strip), r.chunks);
        Word* to = r.weights(y) + half * kTileWords;
        const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                               21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        __m512 high = _mm512_setzero_ps();
        total = _mm512_setzero_ps();
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC unroll 4
#endif
        for (std::int64_t pair = 0; pair < kStripKeys / 2; ++pair) {
            const __m512 a = exp2_of<Avx512, false>(
                _mm512_fmadd_ps(S::score(from + pair * 32, scales + 2 * pair), factor, offset));
            const __m512 b = exp2_of<Avx512, false>(
                _mm512_fmadd_ps(S::score(from + pair * 32 + 16, scales + 2 * pair + 1), factor, offset));
            const __m512 both = _mm512_add_ps(a, b);
            total = _mm512_add_ps(total, both);
            high = _mm512_max_ps(both, high);
            _mm512_storeu_si512(to + pair * 16, _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(b, a)));
        }
        return _mm512_cmp_ps_mask(high, _mm512_set1_ps(256.0f), _CMP_GT_OQ);
    }

    static RUSHES_INLINE void zero_sums() {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    // Tiles 0 ... 3 += (left tiles a, b) x (right tiles c, d): 0 = a c, 1 = a d, 2 = b c, 3 = b d.
    template <class Product>
    static RUSHES_INLINE void multiply(const Word* left, const Word* right, bool wide) {
        _tile_loadd(4, left, 64);
        _tile_loadd(6, right, 64);
        Product::ac();
        _tile_loadd(5, left + kTileWords, 64);
        Product::bc();
        if (wide) {
            _tile_loadd(7, right + kTileWords, 64);
            Product::ad();
            Product::bd();
        }
    }
    static RUSHES_INLINE void store_sums(float* a, float* b, float* c, float* d, bool wide) {
        _tile_stored(0, a, 64);
        _tile_stored(2, c, 64);
        if (wide) {
            _tile_stored(1, b, 64);
            _tile_stored(3, d, 64);
        }
    }

    static void multiply_keys(const Walk& r, const Place& x) {
        const Word *k = r.keys(x.strip), *q = r.queries(x.group);
        memory_is_used();
        zero_sums();
        for (std::int64_t c = 0; c < r.chunks; ++c)
            multiply<typename S::Product>(k + c * 2 * kTileWords, q + c * 2 * kTileWords, x.wide);
        float* to = r.scores(x);
        store_sums(to, to + 2 * kTileWords, to + kTileWords, to + 3 * kTileWords, x.wide);
        memory_is_used();
        for (std::int64_t key = r.t.strips[x.strip].valid; key < kStripKeys; ++key)
            for (int half = 0; half < 2; ++half) S::store_nothing(to + half * 2 * kTileWords + key * 16);
    }

    // Values of the `count` strips up to y by their weights.
    static void multiply_values(const Walk& r, const Place& y, std::int64_t count) {
        const std::int64_t start = y.strip + 1 - count;
        memory_is_used();
        for (std::int64_t i = 0; i < r.pairs; ++i) {
            float* sums = r.sums(y.group) + i * 4 * kTileWords;
            if (start == 0) {
                zero_sums();
            } else {
                _tile_loadd(0, sums, 64);
                _tile_loadd(2, sums + 2 * kTileWords, 64);
                if (y.wide) {
                    _tile_loadd(1, sums + kTileWords, 64);
                    _tile_loadd(3, sums + 3 * kTileWords, 64);
                }
            }
            for (std::int64_t j = 0; j < count; ++j)
                multiply<Bf16Product>(r.values(start + j) + i * 2 * kTileWords, r.w.p + j * kWeightWords, y.wide);
            store_sums(sums, sums + kTileWords, sums + 2 * kTileWords, sums + 3 * kTileWords, y.wide);
        }
        memory_is_used();
    }

    // The largest score of each query of `which` in the strip, rounded up: powers of two then rescale without error.
    static void raise_maxima(const Walk& r, const Place& y, unsigned which) {
        const std::int64_t row = y.group * kGroupRows;
        const float* scales = S::scales(r.keys(y.strip), r.chunks);
        for (int half = 0; half < (y.wide ? 2 : 1); ++half) {
            const float* from = r.scores(y) + half * 2 * kTileWords;
            __m512 top = _mm512_set1_ps(-INFINITY), top2 = top;
            for (std::int64_t key = 0; key < kStripKeys; key += 2) {
                top = _mm512_max_ps(top, S::score(from + key * 16, scales + key));
                top2 = _mm512_max_ps(top2, S::score(from + key * 16 + 16, scales + key + 1));
            }
            top = _mm512_mul_ps(_mm512_max_ps(top, top2), _mm512_loadu_ps(r.w.factors + row + half * 16));
            top = _mm512_roundscale_ps(top, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC);
            _mm512_mask_storeu_ps(r.w.maxima + row + half * 16, static_cast<__mmask16>(which >> (16 * half)), top);
        }
    }

    static void scale_weights(Word* p, __m512 shrink) {
        for (int i = 0; i < 16; ++i) {
            const __m512i both = _mm512_loadu_si512(p + i * 16);
            const __m512 low = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
            const __m512 high = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(-0x10000)));
            const __m512i a = _mm512_castps_si512(_mm512_mul_ps(low, shrink));
            const __m512i b = _mm512_castps_si512(_mm512_mul_ps(high, shrink));
            _mm512_storeu_si512(p + i * 16, _mm512_or_si512(_mm512_srli_epi32(a, 16),
                                                            _mm512_and_si512(b, _mm512_set1_epi32(-0x10000))));
        }
    }

    // Some weights of the strip are above 2^8: its own maxima, and everything before it in their terms.
    static void rescale(const Walk& r, const Place& y, unsigned which) {
        alignas(64) float before[32];
        const std::int64_t row = y.group * kGroupRows;
        std::memcpy(before, r.w.maxima + row, sizeof before);
        raise_maxima(r, y, which);
        for (int half = 0; half < (y.wide ? 2 : 1); ++half) {
            const __m512 moved =
                _mm512_sub_ps(_mm512_load_ps(before + half * 16), _mm512_loadu_ps(r.w.maxima + row + half * 16));
            const __mmask16 mask = static_cast<__mmask16>(which >> (16 * half));
            const __m512 shrink = _mm512_mask_scalef_ps(_mm512_set1_ps(1.0f), mask, _mm512_set1_ps(1.0f), moved);
            float* weights = r.w.weights + row + half * 16;
            _mm512_storeu_ps(weights, _mm512_mul_ps(_mm512_loadu_ps(weights), shrink));
            for (std::int64_t i = 0; i < 2 * r.pairs; ++i) {
                float* sums = r.sums(y.group) + (i * 2 + half) * kTileWords;
                for (int c = 0; c < 16; ++c)
                    _mm512_storeu_ps(sums + c * 16, _mm512_mul_ps(_mm512_loadu_ps(sums + c * 16), shrink));
            }
            for (Word* p = r.w.p; p < r.weights(y); p += kWeightWords) scale_weights(p + half * kTileWords, shrink);
        }
    }

    static void soften_strip(const Walk& r, const Place& y) {
        if (y.strip == 0) raise_maxima(r, y, ~0u);
        __m512 totals[2] = {};
        unsigned above = soften(r, y, 0, totals[0]);
        if (y.wide) above |= static_cast<unsigned>(soften(r, y, 1, totals[1])) << 16;
        if (above) {
            rescale(r, y, above);
            soften(r, y, 0, totals[0]);
            if (y.wide) soften(r, y, 1, totals[1]);
        }
        float* weights = r.w.weights + y.group * kGroupRows;
        for (int half = 0; half < 2; ++half)
            _mm512_storeu_ps(weights + half * 16, _mm512_add_ps(_mm512_loadu_ps(weights + half * 16), totals[half]));
    }

    // The strip at this place of the next run, in as many parts as there are groups.
    static void prefetch_next_run(const Walk& r, const Place& y) {
        const std::int64_t next = y.strip + kRun;
        if (next >= r.t.strip_count) return;
        const auto part = [&](const Word* strip, std::size_t words) {
            const std::int64_t lines = static_cast<std::int64_t>(words) / 16;
            for (std::int64_t i = y.group * lines / r.groups; i < (y.group + 1) * lines / r.groups; ++i)
                _mm_prefetch(reinterpret_cast<const char*>(strip + i * 16), _MM_HINT_T1);
        };
        part(r.keys(next), k_strip_words(r.t.head_dim));
        part(r.values(next), v_strip_words(r.t.head_dim));
    }

    // The next strip's scores are begun before this one's are softened: the vector unit need not wait for them.
    static void walk(const Walk& r) {
        Place x{0, 0, 0, r.is_wide(0), 0};
        multiply_keys(r, x);
        for (bool more = true; more;) {
            const Place y = x;
            more = r.advance(x);
            if (more) multiply_keys(r, x);
            prefetch_next_run(r, y);
            soften_strip(r, y);
            const std::int64_t count = (y.strip - y.run) % kBlock + 1;
            if (count == kBlock || y.strip + 1 == r.run_end(y.run)) multiply_values(r, y, count);
        }
    }

    static void tile(const TileTask& t, void* scratch) {
        Walk r{t, {}, chunks(t.head_dim), channel_pairs(t.head_dim), (t.rows + kGroupRows - 1) / kGroupRows};
        carve(static_cast<char*>(scratch), t.head_dim, r.w);
        // Zero would make NaN of the -inf of the tails; the smallest factor gives the same weights.
        float factor = (t.scale < 0 ? -t.scale : t.scale) * kLog2E;
        if (!(factor > 1e-37f)) factor = 1e-37f;
        S::pack_queries(t, r.chunks, factor, r.w.q, r.w.factors);
        std::memset(r.w.weights, 0, static_cast<std::size_t>(r.groups * kGroupRows) * sizeof(float));
        walk(r);
        for (std::int64_t row = 0; row < t.rows; row += 16) {
            const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_loadu_ps(r.w.weights + row));
            const std::int64_t rows = t.rows - row < 16 ? t.rows - row : 16;
            for (std::int64_t c = 0; c < t.head_dim; c += 16)
                store_outputs(r.sums(row / 32) + (c / 16 * 2 + row / 16 % 2) * kTileWords, inverse, rows, t, row, c);
        }
    }

    static void pack(const PackTask& t, void*) {
        S::pack_keys({t.dtype, t.k, t.k_token, t.k_channel, t.head_dim}, t, chunks(t.head_dim));
        const AmxRows v = {t.dtype, t.v, t.v_token, t.v_channel, t.head_dim};
        for (std::int64_t i = 0; i < channel_pairs(t.head_dim); ++i)
            pack_values(v, t.valid, i * 32, t.packed_v + i * 2 * kTileWords);
    }

    static void enter() {
        const TileConfig config;
        __asm__ volatile("" ::"r"(&config) : "memory");
        _tile_loadconfig(&config);
    }
    static void leave() { _tile_release(); }

    static const KernelTable* table() {
        static const KernelTable kTable = {S::kName, kStripKeys, kTileRows, 16, &k_strip_words, &v_strip_words,
                                           &scratch_bytes, S::kSumKeys, &pack, &tile, &enter, &leave};
        return &kTable;
    }
};

}  // namespace
}  // namespace rushes::cpu
