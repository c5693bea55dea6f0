// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// Cuts a problem into packing and query tiles, and hands them to threads.
//
// Heads are taken in waves whose packed keys and values fit in kWaveBytes (one head, where a head is larger): first all
// threads pack the wave's strips (where the kernel wants the mean key, they sum parts of the keys before), then all of
// them take its query tiles, longest lists first. What a tile computes
// depends on neither the wave nor the thread nor their number, so the bits do not either. The workspace holds packed
// strips, lists, and each thread's scratch; nothing else is allocated once the pool's threads are up.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <initializer_list>

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

struct Item {
    std::int32_t tile, row, rows;
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
    for (std::int64_t i = 0; i < p.query_tiles; ++i) {
        const std::int64_t rows = query_start(p, i + 1) - query_start(p, i);
        p.items += divide_up(rows, part_rows(kernel, rows));
    }
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

std::int64_t list_length(const Plan& p, std::int64_t tile) {
    const TileLists* lists = p.problem->pattern;
    return lists ? lists->offsets[tile + 1] - lists->offsets[tile] : 1;
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
    // Tiles that attend to everything (text) go first: one of them begun last would leave the other threads idle.
    std::int64_t item = 0;
    for (const bool dense : {true, false})
        for (std::int64_t i = 0; i < p.query_tiles; ++i) {
            if ((list_length(p, i) == p.key_tiles) != dense) continue;
            const std::int64_t rows = query_start(p, i + 1) - query_start(p, i), part = part_rows(*p.kernel, rows);
            for (std::int64_t row = 0; row < rows; row += part)
                p.item[item++] = {static_cast<std::int32_t>(i), static_cast<std::int32_t>(row),
                                  static_cast<std::int32_t>(std::min(part, rows - row))};
        }
}

std::size_t element_bytes(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

char* at(const Tensor& t, const Attention& a, std::int64_t group, std::int64_t token) {
    const std::int64_t offset =
        group / a.heads * t.strides[0] + group % a.heads * t.strides[1] + token * t.strides[2];
    return static_cast<char*>(t.data) + offset * static_cast<std::int64_t>(element_bytes(a.dtype));
}

enum class Phase { kSum, kPack, kTiles };

// What the threads share while they work on one wave.
struct Shared {
    const Plan* plan;
    std::int64_t first, count;  // groups of this wave
    Phase phase;
    std::atomic<std::int64_t> next{0};
    std::atomic<bool> stop{false};
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

void compute_item(const Plan& p, std::int64_t group, std::int64_t place, const Item& item, char* scratch) {
    const Attention& a = *p.problem;
    StripRef* strips = reinterpret_cast<StripRef*>(scratch + p.kernel->scratch_bytes(a.head_dim));
    std::int64_t count = 0;
    const auto add_tile = [&](std::int64_t tile) {
        for (std::int64_t s = p.tile_strip[tile]; s < p.tile_strip[tile + 1]; ++s)
            strips[count++] = {static_cast<std::int32_t>(s), p.strip_valid[s]};
    };
    if (const TileLists* lists = a.pattern) {
        const std::int64_t row = group % p.sets * p.query_tiles + item.tile;
        for (std::int64_t i = lists->offsets[row]; i < lists->offsets[row + 1]; ++i) add_tile(lists->tiles[i]);
    } else {
        add_tile(0);
    }
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
                           count};
    p.kernel->tile(task, scratch);
}

void work(void* context, int thread, int) {
    Shared& shared = *static_cast<Shared*>(context);
    const Plan& p = *shared.plan;
    const Attention& a = *p.problem;
    char* scratch = p.threads_scratch + p.scratch * static_cast<std::size_t>(thread);
    [[maybe_unused]] const Rounding rounding;
    p.kernel->enter();
    std::int64_t per_group = p.items;
    if (shared.phase == Phase::kSum) per_group = p.sum_parts;
    if (shared.phase == Phase::kPack) per_group = divide_up(p.strips, kPackChunk);
    while (!shared.stop.load(std::memory_order_relaxed)) {
        const std::int64_t i = shared.next.fetch_add(1, std::memory_order_relaxed);
        if (i >= per_group * shared.count) break;
        const std::int64_t place = i / per_group, group = shared.first + place;
        if (shared.phase == Phase::kSum)
            sum_part(p, group, place, i % per_group);
        else if (shared.phase == Phase::kPack)
            pack_chunk(p, group, place, i % per_group, scratch);
        else
            compute_item(p, group, place, p.item[i % per_group], scratch);
        if (thread == 0 && a.cancelled && a.cancelled(a.cancel_context)) shared.stop = true;
    }
    p.kernel->leave();
}

// Waking the helpers takes longer than work of this many products; the bits are the same either way.
int useful_threads(const Plan& p) {
    const Attention& a = *p.problem;
    const double products = 2.0 * a.batch * a.heads * a.length_q * a.length_k * a.head_dim;
    const double most = static_cast<double>(p.items * p.groups);
    return static_cast<int>(std::max(1.0, std::min({static_cast<double>(a.threads), most, products / 4e6})));
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
    const int threads = useful_threads(plan);
    for (std::int64_t first = 0; first < plan.groups; first += plan.wave)
        for (const Phase phase : {Phase::kSum, Phase::kPack, Phase::kTiles}) {
            if (phase == Phase::kSum && plan.sum_parts == 0) continue;
            Shared shared;
            shared.plan = &plan;
            shared.first = first;
            shared.count = std::min(plan.wave, plan.groups - first);
            shared.phase = phase;
            run_on_threads(threads, &work, &shared);
            if (shared.stop) return fail(Status::kCancelled, "the attention was cancelled");
        }
    return Status::kOk;
}

}  // namespace cpu
}  // namespace rushes
