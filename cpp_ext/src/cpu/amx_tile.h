// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// One query tile against a list of key strips by AMX tiles: 16 x 16 sums of 16 products of 4 bytes each. The algorithm is
// that of tile.h; what differs is where things lie.
//
// Turned     Scores lie as [keys][queries] and sums as [channels][queries]: a lane of a register is a query all the way,
//            so that maxima and sums of weights need nothing across lanes, and keys are packed by copying rows.
// Walk       Runs of kRun strips stay in the second-level cache while the task's groups of 32 queries pass over them one
//            after another; a group's state stays in the first-level cache for a run. The next run is prefetched.
// Parts      A task may hold several query tiles, each with its own list: the walk is over the strips that any of them
//            attends to, and a group passes over what is not its own. Its state does not see it, so neither do its bits:
//            sums go on from block to block without a rounding, wherever the blocks begin.
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
    static constexpr std::int64_t kBlock = 8, kRun = 32, kFirstRun = 8, kGroupRows = 32, kTileRows = 256;
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

    // The strips of the next run are fetched to the second-level cache, a strip and group of this one at a time, as many
    // lines as will have fetched all at its end.
    struct Ahead {
        std::int64_t each;
        std::int64_t strip, end, line;
    };

    // Up to 32 queries of one part of the task, and whether anything of them has been weighted and summed yet.
    struct Group {
        std::int64_t row, rows;
        unsigned part;  // its bit in StripRef::parts
        bool weighted, summed;

        bool wide() const { return rows > 16; }
    };
    // Where the walk over runs of strips, groups of queries and the group's own strips is.
    struct Place {
        std::int64_t run, group, strip;  // first strip of the run; strip of the list
        std::int64_t slot, block;        // of the scores; of the weights: the group's strips of a run, kBlock by kBlock
    };
    struct Walk {
        const TileTask& t;
        Work w;
        std::int64_t chunks, pairs, groups;
        Group group[kTileRows / kGroupRows];
        const Word* block_values[kBlock];
        Ahead ahead;

        // Short at first: the first run is not in the cache yet, and each fetches the next.
        std::int64_t run_end(std::int64_t run) const {
            const std::int64_t end = run + (run < kFirstRun ? kFirstRun : run < kRun ? run : kRun);
            return end < t.strip_count ? end : t.strip_count;
        }
        // To the next strip, this one included, that its group attends to; false where there is none left.
        bool seek(Place& p) const {
            for (;;) {
                for (const std::int64_t end = run_end(p.run); p.strip < end; ++p.strip)
                    if (t.strips[p.strip].parts & group[p.group].part) return true;
                if (++p.group == groups) {
                    p.group = 0;
                    p.run = run_end(p.run);
                    if (p.run == t.strip_count) return false;
                }
                p.strip = p.run;
                p.block = -1;
            }
        }
        bool advance(Place& p) const {
            p.slot ^= 1;
            ++p.strip;
            const bool more = seek(p);
            p.block = (p.block + 1) % kBlock;
            return more;
        }
        const Word* keys(std::int64_t strip) const {
            return t.packed_k + t.strips[strip].index * static_cast<std::int64_t>(k_strip_words(t.head_dim));
        }
        const Word* values(std::int64_t strip) const {
            return t.packed_v + t.strips[strip].index * static_cast<std::int64_t>(v_strip_words(t.head_dim));
        }
        const Word* queries(std::int64_t i) const { return w.q + i * chunks * 2 * kTileWords; }
        float* sums(std::int64_t i) const { return w.sums + i * pairs * 4 * kTileWords; }
        float* scores(const Place& p) const { return w.scores + p.slot * kScoreWords; }
        Word* weights(const Place& p) const { return w.p + p.block * kWeightWords; }
        bool wide(const Place& p) const { return group[p.group].wide(); }
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
        const bool wide = r.wide(x);
        memory_is_used();
        zero_sums();
        for (std::int64_t c = 0; c < r.chunks; ++c)
            multiply<typename S::Product>(k + c * 2 * kTileWords, q + c * 2 * kTileWords, wide);
        float* to = r.scores(x);
        store_sums(to, to + 2 * kTileWords, to + kTileWords, to + 3 * kTileWords, wide);
        memory_is_used();
        for (std::int64_t key = r.t.strips[x.strip].valid; key < kStripKeys; ++key)
            for (int half = 0; half < 2; ++half) S::store_nothing(to + half * 2 * kTileWords + key * 16);
    }

    // Values of the block's strips, up to that at y, by their weights.
    static void multiply_values(Walk& r, const Place& y) {
        const bool wide = r.wide(y), first = !r.group[y.group].summed;
        memory_is_used();
        for (std::int64_t i = 0; i < r.pairs; ++i) {
            float* sums = r.sums(y.group) + i * 4 * kTileWords;
            if (first) {
                zero_sums();
            } else {
                _tile_loadd(0, sums, 64);
                _tile_loadd(2, sums + 2 * kTileWords, 64);
                if (wide) {
                    _tile_loadd(1, sums + kTileWords, 64);
                    _tile_loadd(3, sums + 3 * kTileWords, 64);
                }
            }
            for (std::int64_t j = 0; j <= y.block; ++j)
                multiply<Bf16Product>(r.block_values[j] + i * 2 * kTileWords, r.w.p + j * kWeightWords, wide);
            store_sums(sums, sums + kTileWords, sums + 2 * kTileWords, sums + 3 * kTileWords, wide);
        }
        memory_is_used();
        r.group[y.group].summed = true;
    }

    // The largest score of each query of `which` in the strip, rounded up: powers of two then rescale without error.
    static void raise_maxima(const Walk& r, const Place& y, unsigned which) {
        const std::int64_t row = y.group * kGroupRows;
        const float* scales = S::scales(r.keys(y.strip), r.chunks);
        for (int half = 0; half < (r.wide(y) ? 2 : 1); ++half) {
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
        for (int half = 0; half < (r.wide(y) ? 2 : 1); ++half) {
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

    static void soften_strip(Walk& r, const Place& y) {
        if (!r.group[y.group].weighted) raise_maxima(r, y, ~0u);
        r.group[y.group].weighted = true;
        r.block_values[y.block] = r.values(y.strip);
        __m512 totals[2] = {};
        unsigned above = soften(r, y, 0, totals[0]);
        if (r.wide(y)) above |= static_cast<unsigned>(soften(r, y, 1, totals[1])) << 16;
        if (above) {
            rescale(r, y, above);
            soften(r, y, 0, totals[0]);
            if (r.wide(y)) soften(r, y, 1, totals[1]);
        }
        float* weights = r.w.weights + y.group * kGroupRows;
        for (int half = 0; half < 2; ++half)
            _mm512_storeu_ps(weights + half * 16, _mm512_add_ps(_mm512_loadu_ps(weights + half * 16), totals[half]));
    }

    static std::int64_t lines(std::size_t words) { return static_cast<std::int64_t>(words) / 16; }

    static void begin_run(Walk& r, std::int64_t run) {
        const std::int64_t next = r.run_end(run);
        const std::int64_t end = next < r.t.strip_count ? r.run_end(next) : next;
        std::int64_t steps = 0;
        for (std::int64_t g = 0; g < r.groups; ++g)
            for (std::int64_t s = run; s < next; ++s) steps += (r.t.strips[s].parts & r.group[g].part) != 0;
        const std::int64_t all = (end - next) * lines(k_strip_words(r.t.head_dim) + v_strip_words(r.t.head_dim));
        r.ahead = {(all + steps - 1) / steps, next, end, 0};
    }

    static void look_ahead(Walk& r) {
        Ahead& a = r.ahead;
        const std::int64_t k_lines = lines(k_strip_words(r.t.head_dim));
        const std::int64_t all_lines = k_lines + lines(v_strip_words(r.t.head_dim));
        for (std::int64_t left = a.each; left > 0 && a.strip < a.end;) {
            const char* k = reinterpret_cast<const char*>(r.keys(a.strip));
            const char* v = reinterpret_cast<const char*>(r.values(a.strip));
            for (; left > 0 && a.line < k_lines; --left, ++a.line) _mm_prefetch(k + a.line * 64, _MM_HINT_T1);
            for (; left > 0 && a.line < all_lines; --left, ++a.line)
                _mm_prefetch(v + (a.line - k_lines) * 64, _MM_HINT_T1);
            if (a.line < all_lines) return;
            a.line = 0;
            ++a.strip;
        }
    }

    // The next strip's scores are begun before this one's are softened: the vector unit need not wait for them.
    static void walk(Walk& r) {
        Place x{0, 0, 0, 0, -1};
        r.seek(x);
        x.block = 0;
        multiply_keys(r, x);
        std::int64_t run = -1;
        for (bool more = true; more;) {
            const Place y = x;
            more = r.advance(x);
            if (more) multiply_keys(r, x);
            if (y.run != run) begin_run(r, y.run);
            run = y.run;
            look_ahead(r);
            soften_strip(r, y);
            if (y.block + 1 == kBlock || !more || x.group != y.group || x.run != y.run) multiply_values(r, y);
        }
    }

    static void tile(const TileTask& t, void* scratch) {
        Walk r{t, {}, chunks(t.head_dim), channel_pairs(t.head_dim), 0, {}, {}, {}};
        carve(static_cast<char*>(scratch), t.head_dim, r.w);
        // Zero would make NaN of the -inf of the tails; the smallest factor gives the same weights.
        float factor = (t.scale < 0 ? -t.scale : t.scale) * kLog2E;
        if (!(factor > 1e-37f)) factor = 1e-37f;
        std::int64_t row = 0;
        for (std::int64_t part = 0; part < t.parts; ++part)
            for (std::int64_t end = row + t.part_rows[part]; row < end; row += r.group[r.groups++].rows)
                r.group[r.groups] = {row, end - row < kGroupRows ? end - row : kGroupRows, 1u << part, false, false};
        for (std::int64_t i = 0; i < r.groups; ++i)
            S::pack_queries(t, r.group[i].row, r.group[i].rows, r.chunks, factor, r.w.q + i * r.chunks * 2 * kTileWords,
                            r.w.factors + i * kGroupRows);
        std::memset(r.w.weights, 0, static_cast<std::size_t>(r.groups * kGroupRows) * sizeof(float));
        walk(r);
        for (std::int64_t i = 0; i < r.groups; ++i)
            for (std::int64_t half = 0; half * 16 < r.group[i].rows; ++half) {
                const float* weights = r.w.weights + i * kGroupRows + half * 16;
                const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_loadu_ps(weights));
                const std::int64_t left = r.group[i].rows - half * 16;
                for (std::int64_t c = 0; c < t.head_dim; c += 16)
                    store_outputs(r.sums(i) + (c / 16 * 2 + half) * kTileWords, inverse, left < 16 ? left : 16, t,
                                  r.group[i].row + half * 16, c);
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
        static const KernelTable kTable = {S::kName, kStripKeys, kTileRows, 16, kTileRows / kGroupRows, kGroupRows, &k_strip_words, &v_strip_words,
                                           &scratch_bytes, S::kSumKeys, &pack, &tile, &enter, &leave};
        return &kTable;
    }
};

}  // namespace
}  // namespace rushes::cpu
