// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// The front door: checks a problem before any pointer of it is read, and keeps exceptions inside.
#include "rushes/attention.h"

#include <cmath>
#include <exception>
#include <initializer_list>
#include <limits>

#include "cpu/select.h"
#include "messages.h"

namespace rushes {
namespace {

thread_local const char* latest_message = "";

// Starts at 0, ends at the length, never empty between.
bool covers(const std::int64_t* start, std::int64_t tiles, std::int64_t length) noexcept {
    if (tiles < 1 || tiles > std::numeric_limits<std::int32_t>::max() || !start || start[0] != 0) return false;
    for (std::int64_t i = 0; i < tiles; ++i)
        if (start[i + 1] <= start[i]) return false;
    return start[tiles] == length;
}

// A tile named twice would not only count double: each thread's list has room for every strip once.
bool lists_are_sound(const TileLists& lists) noexcept {
    if (!lists.offsets || !lists.tiles || lists.offsets[0] != 0) return false;
    for (std::int64_t row = 0; row < lists.sets * lists.query_tiles; ++row) {
        if (lists.offsets[row + 1] <= lists.offsets[row]) return false;
        std::int64_t before = -1;
        for (std::int64_t i = lists.offsets[row]; i < lists.offsets[row + 1]; ++i) {
            if (lists.tiles[i] <= before || lists.tiles[i] >= lists.key_tiles) return false;
            before = lists.tiles[i];
        }
    }
    return true;
}

Status check(const Attention& a) noexcept {
    constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
    for (const std::int64_t n : {a.batch, a.heads, a.length_q, a.length_k})
        if (n < 1 || n > kMost) return fail(Status::kInvalid, "shape: one to 2^31 - 1 in each dimension is allowed");
    if (a.head_dim < 8 || a.head_dim > 256 || a.head_dim % 8)
        return fail(Status::kUnsupported, "head_dim: 8 to 256 in steps of 8 is allowed");
    if (!std::isfinite(a.scale)) return fail(Status::kInvalid, "scale: a finite number is allowed");
    if (a.threads < 1 || a.threads > 4096) return fail(Status::kInvalid, "threads: 1 to 4096 is allowed");
    const auto between = [](auto value, int last) {
        return static_cast<int>(value) >= 0 && static_cast<int>(value) <= last;
    };
    if (!between(a.dtype, 2) || !between(a.precision, 3) || !between(a.isa, 6))
        return fail(Status::kInvalid, "dtype, precision or isa: an unknown number");
    if (const TileLists* lists = a.pattern) {
        if (lists->sets != 1 && lists->sets != a.heads && lists->sets != a.batch * a.heads)
            return fail(Status::kInvalid, "pattern: one set of lists, one a head, or one a batch and head is allowed");
        if (!covers(lists->query_start, lists->query_tiles, a.length_q) ||
            !covers(lists->key_start, lists->key_tiles, a.length_k))
            return fail(Status::kInvalid, "pattern: its tiles must cover the tokens of q and k in order");
        if (!lists_are_sound(*lists))
            return fail(Status::kInvalid, "pattern: each list must name one key tile or more, in rising order");
    }
    return Status::kOk;
}

}  // namespace

Status fail(Status status, const char* sentence) noexcept {
    latest_message = sentence;
    return status;
}

const char* attention_message() noexcept { return latest_message; }

std::size_t attention_workspace_bytes(const Attention& problem) noexcept {
    if (check(problem) != Status::kOk) return 0;
    const cpu::KernelTable* kernel = cpu::select_kernel(problem);
    return kernel ? cpu::workspace_bytes(problem, *kernel) : 0;
}

const char* attention_backend(const Attention& problem) noexcept {
    if (check(problem) != Status::kOk) return nullptr;
    const cpu::KernelTable* kernel = cpu::select_kernel(problem);
    return kernel ? kernel->name : nullptr;
}

Status attention_run(const Attention& problem) noexcept {
    if (const Status status = check(problem); status != Status::kOk) return status;
    if (!problem.q.data || !problem.k.data || !problem.v.data || !problem.out.data || !problem.workspace)
        return fail(Status::kInvalid, "q, k, v, out, workspace: a null pointer");
    const cpu::KernelTable* kernel = cpu::select_kernel(problem);
    if (!kernel) return Status::kUnsupported;
    try {
        return cpu::run(problem, *kernel);
    } catch (const std::exception&) {
        return fail(Status::kNoMemory, "the system has no memory or threads left");
    }
}

}  // namespace rushes
