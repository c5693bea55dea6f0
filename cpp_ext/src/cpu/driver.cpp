// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Cuts a problem into packing and query tiles, and hands them to threads.
//
// Heads are taken in waves whose packed keys and values fit in kWaveBytes (one head, where a head is larger): first all
// threads pack the wave's strips (where the kernel wants the mean key, they sum parts of the keys before), then all of
// them take its query tiles, longest lists first, neighbouring tiles together where the kernel can. What a tile computes
// depends on neither the wave nor its neighbours nor the thread nor their number, so the bits do not either. The workspace
// holds packed strips, lists, and each thread's scratch; nothing else is allocated once the pool's threads are up.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <initializer_list>
#include <limits>

#include "kernel_table.h"
#include "messages.h"
#include "rushes/cpu_features.h"
#include "select.h"
#include "thread_pool.h"

#if defined(__SSE2__) || defined(_M_X64)
#include <xmmintrin.h>
#define RUSHES_HAS_MXCSR 1
#endif

namespace rushes {
namespace cpu {
namespace {

constexpr std::size_t kWaveBytes = std::size_t{64} << 20;
constexpr std::int64_t kPackChunk = 8;   // strips
constexpr std::int64_t kSumChunk = 512;  // keys
constexpr std::int64_t kJoinFrom = 64;   // query tiles
constexpr std::int64_t kMostParts = 16;  // bits of StripRef::parts

// Numbers under 2^-126 cost hundreds of cycles each on x86, and bfloat16 products treat them as zero anyway. Set here
// for each thread, so that the bits do not depend on what the caller has set for its own.
class Rounding {
public:
#if defined(RUSHES_HAS_MXCSR)
    Rounding() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80u | 0x8040u); }  // all masked, to nearest, flush both ways
    ~Rounding() { _mm_setcsr(before_); }

private:
    unsigned before_;
#endif
};

// Rows of one query tile, or several tiles that follow each other, whole.
struct Item {
    std::int32_t tile, tiles, row, rows;
};

struct Plan {
    const Attention* problem;
    const KernelTable* kernel;
    std::int64_t strips, items, sets, groups, wave;  // groups: batch * heads; wave: groups at a time
    std::size_t k_words, v_words, scratch;           // of a strip; of a thread
    std::int64_t query_tiles, key_tiles, sum_parts;
    // in the workspace
    std::int64_t *strip_token, *tile_strip;
    std::int32_t* strip_valid;
    Item* item;
    float* key_sums;  // [wave][sum_parts][head_dim]
    Word *packed_k, *packed_v;
    char* threads_scratch;
};

std::int64_t query_start(const Plan& p, std::int64_t i) {
    if (p.problem->pattern) return p.problem->pattern->query_start[i];
    return i == 0 ? 0 : p.problem->length_q;
}
std::int64_t key_start(const Plan& p, std::int64_t i) {
    if (p.problem->pattern) return p.problem->pattern->key_start[i];
    return i == 0 ? 0 : p.problem->length_k;
}
std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// A tile of queries in equal parts, so that no part is left with a few rows and the cost of a whole one.
std::int64_t part_rows(const KernelTable& kernel, std::int64_t rows) {
    const std::int64_t parts = divide_up(rows, kernel.tile_rows);
    return std::min(kernel.tile_rows, divide_up(divide_up(rows, parts), kernel.row_multiple) * kernel.row_multiple);
}

std::int64_t list_length(const Plan& p, std::int64_t tile) {
    const TileLists* lists = p.problem->pattern;
    return lists ? lists->offsets[tile + 1] - lists->offsets[tile] : 1;
}

// How many query tiles from this one on go into one item: neighbours share most of their keys, which are then read once.
// By the pattern alone, lest bits depend on anything else; not where it would leave too few items for the threads.
std::int64_t joined_tiles(const Plan& p, std::int64_t tile) {
    const KernelTable& kernel = *p.kernel;
    if (p.query_tiles < kJoinFrom) return 1;
    const bool dense = list_length(p, tile) == p.key_tiles;
    std::int64_t count = 0;
    for (std::int64_t rows = 0; count < kernel.most_parts && tile + count < p.query_tiles; ++count) {
        const std::int64_t next = query_start(p, tile + count + 1) - query_start(p, tile + count);
        rows += divide_up(next, kernel.part_multiple) * kernel.part_multiple;
        if (rows > kernel.tile_rows || (list_length(p, tile + count) == p.key_tiles) != dense) break;
    }
    return std::max<std::int64_t>(count, 1);
}

// Tiles that attend to everything (text) go first: one of them begun last would leave the other threads idle.
template <class Take>
void for_each_item(const Plan& p, const Take& take) {
    for (const bool dense : {true, false})
        for (std::int64_t i = 0, tiles; i < p.query_tiles; i += tiles) {
            tiles = 1;
            if ((list_length(p, i) == p.key_tiles) != dense) continue;
            tiles = joined_tiles(p, i);
            const std::int64_t rows = query_start(p, i + tiles) - query_start(p, i);
            const std::int64_t part = tiles > 1 ? rows : part_rows(*p.kernel, rows);
            for (std::int64_t row = 0; row < rows; row += part)
                take(Item{static_cast<std::int32_t>(i), static_cast<std::int32_t>(tiles),
                          static_cast<std::int32_t>(row), static_cast<std::int32_t>(std::min(part, rows - row))});
        }
}

// Counts first; with a workspace also where everything lies in it. Returns the bytes.
std::size_t lay_out(const Attention& a, const KernelTable& kernel, Plan& p) {
    p = Plan{};
    p.problem = &a;
    p.kernel = &kernel;
    p.query_tiles = a.pattern ? a.pattern->query_tiles : 1;
    p.key_tiles = a.pattern ? a.pattern->key_tiles : 1;
    p.sets = a.pattern ? a.pattern->sets : 1;
    p.groups = a.batch * a.heads;
    p.sum_parts = kernel.sum_keys ? divide_up(a.length_k, kSumChunk) : 0;
    for (std::int64_t i = 0; i < p.key_tiles; ++i)
        p.strips += divide_up(key_start(p, i + 1) - key_start(p, i), kernel.strip_keys);
    for_each_item(p, [&](const Item&) { ++p.items; });
    p.k_words = kernel.k_strip_words(a.head_dim);
    p.v_words = kernel.v_strip_words(a.head_dim);
    // behind what the kernel wants: a tile's list of strips, or the mean key while packing
    p.scratch = kernel.scratch_bytes(a.head_dim) + std::max(static_cast<std::size_t>(p.strips) * sizeof(StripRef),
                                                            static_cast<std::size_t>(a.head_dim) * sizeof(float));
    p.scratch = (p.scratch + 63) / 64 * 64;
    const std::size_t head = static_cast<std::size_t>(p.strips) * (p.k_words + p.v_words) * sizeof(Word);
    p.wave = std::clamp<std::int64_t>(static_cast<std::int64_t>(kWaveBytes / head), 1, p.groups);

    std::size_t at = 0;
    const auto take = [&](std::size_t bytes) {
        char* place = a.workspace ? static_cast<char*>(a.workspace) + at : nullptr;
        at += (bytes + 63) / 64 * 64;
        return place;
    };
    const std::size_t strips = static_cast<std::size_t>(p.strips), wave = static_cast<std::size_t>(p.wave);
    p.strip_token = reinterpret_cast<std::int64_t*>(take(strips * sizeof(std::int64_t)));
    p.tile_strip = reinterpret_cast<std::int64_t*>(take(static_cast<std::size_t>(p.key_tiles + 1) * 8));
    p.strip_valid = reinterpret_cast<std::int32_t*>(take(strips * sizeof(std::int32_t)));
    p.item = reinterpret_cast<Item*>(take(static_cast<std::size_t>(p.items) * sizeof(Item)));
    p.key_sums = reinterpret_cast<float*>(
        take(wave * static_cast<std::size_t>(p.sum_parts * a.head_dim) * sizeof(float)));
    p.packed_k = reinterpret_cast<Word*>(take(wave * strips * p.k_words * sizeof(Word)));
    p.packed_v = reinterpret_cast<Word*>(take(wave * strips * p.v_words * sizeof(Word)));
    p.threads_scratch = take(p.scratch * static_cast<std::size_t>(std::max(a.threads, 1)));
    return at;
}

void fill_tables(const Plan& p) {
    std::int64_t strip = 0;
    for (std::int64_t i = 0; i < p.key_tiles; ++i) {
        p.tile_strip[i] = strip;
        for (std::int64_t token = key_start(p, i); token < key_start(p, i + 1); token += p.kernel->strip_keys) {
            p.strip_token[strip] = token;
            p.strip_valid[strip++] =
                static_cast<std::int32_t>(std::min(p.kernel->strip_keys, key_start(p, i + 1) - token));
        }
    }
    p.tile_strip[p.key_tiles] = strip;
    std::int64_t items = 0;
    for_each_item(p, [&](const Item& item) { p.item[items++] = item; });
}

std::size_t element_bytes(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

char* at(const Tensor& t, const Attention& a, std::int64_t group, std::int64_t token) {
    const std::int64_t offset =
        group / a.heads * t.strides[0] + group % a.heads * t.strides[1] + token * t.strides[2];
    return static_cast<char*>(t.data) + offset * static_cast<std::int64_t>(element_bytes(a.dtype));
}

enum class Phase { kSum, kPack, kTiles };

// A step of the work: one phase of one wave. Its pieces are numbered on from those of the steps before.
struct Step {
    Phase phase;
    std::int64_t first, count;  // groups of the wave
    std::int64_t start, each;   // number of its first piece; pieces of a group

    std::int64_t end() const { return start + each * count; }
};

Step step_of(const Plan& p, Phase phase, std::int64_t first, std::int64_t start) {
    std::int64_t each = p.items;
    if (phase == Phase::kSum) each = p.sum_parts;
    if (phase == Phase::kPack) each = divide_up(p.strips, kPackChunk);
    return {phase, first, std::min(p.wave, p.groups - first), start, each};
}

Step step_after(const Plan& p, const Step& step) {
    if (step.phase == Phase::kTiles) return step_of(p, Phase::kSum, step.first + step.count, step.end());
    return step_of(p, step.phase == Phase::kSum ? Phase::kPack : Phase::kTiles, step.first, step.end());
}

// What the threads share. Pieces are taken in the order of their numbers, and begun when all of the steps before have
// ended; as those were taken earlier, by threads that are at work on them, nobody waits for a waiting one. So a call needs
// the threads once, and does not mind when some of them come late or not at all.
struct Shared {
    const Plan* plan;
    alignas(64) std::atomic<std::int64_t> next{0};   // piece
    alignas(64) std::atomic<std::int64_t> ended{0};  // pieces
    std::atomic<bool> stop{false};

    bool wait_until_ended(std::int64_t pieces) const {
        for (Pause pause; ended.load(std::memory_order_acquire) < pieces; pause())
            if (stop.load(std::memory_order_relaxed)) return false;
        return true;
    }
};

PackTask pack_task(const Plan& p, std::int64_t group, std::int64_t token, std::int64_t valid) {
    const Attention& a = *p.problem;
    PackTask task{};
    task.dtype = a.dtype;
    task.head_dim = a.head_dim;
    task.k = at(a.k, a, group, token);
    task.v = at(a.v, a, group, token);
    task.k_token = a.k.strides[2];
    task.k_channel = a.k.strides[3];
    task.v_token = a.v.strides[2];
    task.v_channel = a.v.strides[3];
    task.valid = valid;
    return task;
}

float* key_sums(const Plan& p, std::int64_t place) {
    return p.key_sums + place * p.sum_parts * p.problem->head_dim;
}

void sum_part(const Plan& p, std::int64_t group, std::int64_t place, std::int64_t part) {
    const std::int64_t token = part * kSumChunk, left = p.problem->length_k - token, width = p.problem->head_dim;
    float* sums = key_sums(p, place) + part * width;
    std::fill(sums, sums + width, 0.0f);
    p.kernel->sum_keys(pack_task(p, group, token, std::min(kSumChunk, left)), sums);
}

// The same few additions for each chunk of strips: cheaper than another wait of all threads for one.
void mean_key(const Plan& p, std::int64_t place, float* mean) {
    const std::int64_t width = p.problem->head_dim;
    std::fill(mean, mean + width, 0.0f);
    for (std::int64_t part = 0; part < p.sum_parts; ++part)
        for (std::int64_t c = 0; c < width; ++c) mean[c] += key_sums(p, place)[part * width + c];
    for (std::int64_t c = 0; c < width; ++c) mean[c] /= static_cast<float>(p.problem->length_k);
}

void pack_chunk(const Plan& p, std::int64_t group, std::int64_t place, std::int64_t chunk, char* scratch) {
    float* mean = p.kernel->sum_keys ? reinterpret_cast<float*>(scratch + p.kernel->scratch_bytes(p.problem->head_dim))
                                     : nullptr;
    if (mean) mean_key(p, place, mean);
    const std::int64_t end = std::min(p.strips, (chunk + 1) * kPackChunk);
    for (std::int64_t s = chunk * kPackChunk; s < end; ++s) {
        const std::size_t slot = static_cast<std::size_t>(place * p.strips + s);
        PackTask task = pack_task(p, group, p.strip_token[s], p.strip_valid[s]);
        task.k_mean = mean;
        task.packed_k = p.packed_k + slot * p.k_words;
        task.packed_v = p.packed_v + slot * p.v_words;
        p.kernel->pack(task, scratch);
    }
}

// Strips that any of the item's tiles attend to, in rising order; returns their number.
std::int64_t list_strips(const Plan& p, std::int64_t group, const Item& item, StripRef* strips) {
    std::int64_t count = 0;
    const auto add_tile = [&](std::int64_t tile, unsigned parts) {
        for (std::int64_t s = p.tile_strip[tile]; s < p.tile_strip[tile + 1]; ++s)
            strips[count++] = {static_cast<std::int32_t>(s), static_cast<std::int16_t>(p.strip_valid[s]),
                               static_cast<std::uint16_t>(parts)};
    };
    const TileLists* lists = p.problem->pattern;
    if (!lists) {
        add_tile(0, 1);
        return count;
    }
    const std::int32_t *at[kMostParts], *end[kMostParts];
    for (std::int32_t i = 0; i < item.tiles; ++i) {
        const std::int64_t row = group % p.sets * p.query_tiles + item.tile + i;
        at[i] = lists->tiles + lists->offsets[row];
        end[i] = lists->tiles + lists->offsets[row + 1];
    }
    for (;;) {
        std::int32_t lowest = std::numeric_limits<std::int32_t>::max();
        for (std::int32_t i = 0; i < item.tiles; ++i)
            if (at[i] != end[i]) lowest = std::min(lowest, *at[i]);
        if (lowest == std::numeric_limits<std::int32_t>::max()) return count;
        unsigned parts = 0;
        for (std::int32_t i = 0; i < item.tiles; ++i)
            if (at[i] != end[i] && *at[i] == lowest) {
                parts |= 1u << i;
                ++at[i];
            }
        add_tile(lowest, parts);
    }
}

void compute_item(const Plan& p, std::int64_t group, std::int64_t place, const Item& item, char* scratch) {
    const Attention& a = *p.problem;
    StripRef* strips = reinterpret_cast<StripRef*>(scratch + p.kernel->scratch_bytes(a.head_dim));
    const std::int64_t count = list_strips(p, group, item, strips);
    std::int32_t part_rows[kMostParts] = {item.rows};
    for (std::int32_t i = 0; item.tiles > 1 && i < item.tiles; ++i)
        part_rows[i] = static_cast<std::int32_t>(query_start(p, item.tile + i + 1) - query_start(p, item.tile + i));
    const std::int64_t token = query_start(p, item.tile) + item.row;
    const std::size_t before = static_cast<std::size_t>(place * p.strips);
    const TileTask task = {a.dtype,
                           a.head_dim,
                           a.scale,
                           at(a.q, a, group, token),
                           at(a.out, a, group, token),
                           a.q.strides[2],
                           a.q.strides[3],
                           a.out.strides[2],
                           a.out.strides[3],
                           item.rows,
                           p.packed_k + before * p.k_words,
                           p.packed_v + before * p.v_words,
                           strips,
                           count,
                           part_rows,
                           item.tiles};
    p.kernel->tile(task, scratch);
}

void do_piece(const Plan& p, const Step& step, std::int64_t piece, char* scratch) {
    const std::int64_t place = piece / step.each, group = step.first + place, i = piece % step.each;
    if (step.phase == Phase::kSum)
        sum_part(p, group, place, i);
    else if (step.phase == Phase::kPack)
        pack_chunk(p, group, place, i, scratch);
    else
        compute_item(p, group, place, p.item[i], scratch);
}

void work(void* context, int thread) {
    Shared& shared = *static_cast<Shared*>(context);
    const Plan& p = *shared.plan;
    const Attention& a = *p.problem;
    char* scratch = p.threads_scratch + p.scratch * static_cast<std::size_t>(thread);
    [[maybe_unused]] const Rounding rounding;
    p.kernel->enter();
    Step step = step_of(p, Phase::kSum, 0, 0);
    while (!shared.stop.load(std::memory_order_relaxed)) {
        // Before a piece, not after one: where helpers take all of them, the caller still asks once.
        if (thread == 0 && a.cancelled && a.cancelled(a.cancel_context)) {
            shared.stop = true;
            break;
        }
        const std::int64_t piece = shared.next.fetch_add(1, std::memory_order_relaxed);
        while (piece >= step.end() && step.first < p.groups) step = step_after(p, step);
        if (step.first >= p.groups || !shared.wait_until_ended(step.start)) break;
        do_piece(p, step, piece - step.start, scratch);
        shared.ended.fetch_add(1, std::memory_order_release);
    }
    p.kernel->leave();
}

// Asking another thread takes longer than work of so many products, waking one longer still; the bits are the same.
int useful_threads(const Plan& p) {
    const Attention& a = *p.problem;
    const double products = 2.0 * a.batch * a.heads * a.length_q * a.length_k * a.head_dim;
    const double most = static_cast<double>(p.items * p.groups), each = shares_threads(a.threads) ? 1e6 : 4e6;
    return static_cast<int>(std::max(1.0, std::min({static_cast<double>(a.threads), most, products / each})));
}

}  // namespace

std::size_t workspace_bytes(const Attention& a, const KernelTable& kernel) {
    Attention empty = a;
    empty.workspace = nullptr;
    Plan plan;
    return lay_out(empty, kernel, plan);
}

Status run(const Attention& a, const KernelTable& kernel) {
    Plan plan;
    if (lay_out(a, kernel, plan) > a.workspace_bytes) return fail(Status::kNoMemory, "the workspace is too small");
    fill_tables(plan);
    Shared shared;
    shared.plan = &plan;
    run_on_threads(useful_threads(plan), &work, &shared);
    return shared.stop ? fail(Status::kCancelled, "the attention was cancelled") : Status::kOk;
}

}  // namespace cpu
}  // namespace rushes
