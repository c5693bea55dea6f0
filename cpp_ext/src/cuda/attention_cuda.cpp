// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// The front door of the CUDA half: checks a problem, chooses a kernel, asks for it on the stream.
#include "rushes/attention_cuda.h"

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <utility>

#include "kernels.h"
#include "plan_kernels.h"
#include "problem.h"
#include "tensor_maps.h"

namespace rushes {
namespace {

using namespace cuda;

thread_local char latest_message[256] = "";

Status fail(Status status, const char* sentence) noexcept {
    std::snprintf(latest_message, sizeof latest_message, "%s", sentence);
    return status;
}
Status fail(const char* what, cudaError_t error) noexcept {
    (void)cudaGetLastError();  // the runtime keeps an error until it is asked for; the next call must not find this one
    std::snprintf(latest_message, sizeof latest_message, "%s: %s", what, cudaGetErrorString(error));
    return error == cudaErrorMemoryAllocation ? Status::kNoMemory : Status::kUnsupported;
}

// Makes a device current, and the one before again.
class Current {
public:
    explicit Current(int device) noexcept {
        is_set_ = cudaGetDevice(&before_) == cudaSuccess && cudaSetDevice(device) == cudaSuccess;
    }
    ~Current() {
        if (is_set_) (void)cudaSetDevice(before_);
    }
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;
    bool is_set() const noexcept { return is_set_; }

private:
    int before_ = 0;
    bool is_set_ = false;
};

// One tensor of a problem. Sizes: batch, heads, length, head_dim.
const char* tensor_obstacle(const Tensor& t, std::int64_t batch, std::int64_t heads, std::int64_t length) noexcept {
    if (t.strides[3] != 1) return "channels must be neighbours in memory (stride 1)";
    const std::int64_t sizes[3] = {batch, heads, length};
    for (int i = 0; i < 3; ++i) {
        if (sizes[i] == 1) continue;
        if (t.strides[i] % 8) return "rows must begin at multiples of 16 bytes (strides of 8 elements)";
        if (t.strides[i] < 1 || t.strides[i] >= std::int64_t{1} << 39) return "strides must be above zero";
    }
    if (reinterpret_cast<std::uintptr_t>(t.data) % 16) return "its address must be a multiple of 16 bytes";
    return nullptr;
}

Status check(const CudaAttention& a) noexcept {
    constexpr std::int64_t kMost = 1 << 30;  // tokens and a tile more fit into 32 bits
    for (const std::int64_t n : {a.batch, a.heads, a.length_q, a.length_k})
        if (n < 1 || n > kMost) return fail(Status::kInvalid, "shape: one to 2^30 in each dimension is allowed");
    if (a.batch * a.heads > kMost) return fail(Status::kInvalid, "shape: up to 2^30 heads in all are allowed");
    if (a.head_dim < 8 || a.head_dim > 256 || a.head_dim % 8)
        return fail(Status::kUnsupported, "head_dim: 8 to 256 in steps of 8 is allowed");
    if (a.dtype != Dtype::kBFloat16 && a.dtype != Dtype::kFloat16)
        return fail(Status::kUnsupported, "dtype: bfloat16 or float16 is allowed on a card");
    if (!std::isfinite(a.scale)) return fail(Status::kInvalid, "scale: a finite number is allowed");
    const struct {
        const char* name;
        const Tensor& tensor;
        std::int64_t length;
    } all[] = {{"q", a.q, a.length_q}, {"k", a.k, a.length_k}, {"v", a.v, a.length_k}, {"out", a.out, a.length_q}};
    for (const auto& one : all)
        if (const char* found = tensor_obstacle(one.tensor, a.batch, a.heads, one.length)) {
            std::snprintf(latest_message, sizeof latest_message, "%s: %s", one.name, found);
            return Status::kUnsupported;
        }
    if (const TileLists* lists = a.pattern) {
        if (lists->sets != 1 && lists->sets != a.heads && lists->sets != a.batch * a.heads)
            return fail(Status::kInvalid, "pattern: one set of lists, one a head, or one a batch and head is allowed");
        if (lists->query_tiles < 1 || lists->query_tiles > a.length_q || lists->key_tiles < 1 ||
            lists->key_tiles > a.length_k || lists->sets * lists->query_tiles > kMost)
            return fail(Status::kInvalid, "pattern: one to as many tiles as tokens are allowed");
    }
    return Status::kOk;
}

struct Choice {
    const Kernel* kernel = nullptr;
    bool is_sm90 = false;
};

Kernels kernels_of(bool is_sm90, Dtype dtype, std::int64_t head_dim) noexcept {
#define RUSHES_CHOOSE(family)                                                             \
    if (dtype == Dtype::kBFloat16)                                                        \
        return head_dim <= 64    ? family##_d64_bf16()                                    \
               : head_dim <= 96  ? family##_d96_bf16()                                    \
               : head_dim <= 128 ? family##_d128_bf16()                                   \
                                 : family##_d256_bf16();                                  \
    return head_dim <= 64    ? family##_d64_fp16()                                        \
           : head_dim <= 96  ? family##_d96_fp16()                                        \
           : head_dim <= 128 ? family##_d128_fp16()                                       \
                             : family##_d256_fp16()
#if defined(RUSHES_BUILD_SM90)
    if (is_sm90) {
        RUSHES_CHOOSE(sm90);
    }
#endif
#if defined(RUSHES_BUILD_MMA)
    if (!is_sm90) {
        RUSHES_CHOOSE(mma);
    }
#endif
#undef RUSHES_CHOOSE
    return {nullptr, 0};
}

// Small query tiles get small blocks. Among blocks of as many rows: the first of which a multiprocessor can hold two at
// a time, one's products under the other's softmax; else the first that fits. The device must be current.
Status choose(const CudaAttention& a, Choice& choice) noexcept {
    int major = 0, per_block = 0, per_processor = 0, reserved = 0;
    for (const auto& [attribute, place] :
         {std::pair{cudaDevAttrComputeCapabilityMajor, &major},
          std::pair{cudaDevAttrMaxSharedMemoryPerBlockOptin, &per_block},
          std::pair{cudaDevAttrMaxSharedMemoryPerMultiprocessor, &per_processor},
          std::pair{cudaDevAttrReservedSharedMemoryPerBlock, &reserved}})
        if (const cudaError_t error = cudaDeviceGetAttribute(place, attribute, a.device); error != cudaSuccess)
            return fail("the card does not answer", error);
    if (major < 8) return fail(Status::kUnsupported, "the card is older than compute capability 8.0");
#if defined(RUSHES_BUILD_SM90)
    choice.is_sm90 = major == 9;
#endif
    const Kernels all = kernels_of(choice.is_sm90, a.dtype, a.head_dim);
    const int rows = (a.pattern ? a.most_query_rows : a.length_q) <= 64 ? 64 : 128;
    int best = -1;
    for (int i = 0; i < all.count; ++i) {
        const Kernel& kernel = all.first[i];
        if (kernel.shared_bytes > per_block) continue;
        const int worth = (kernel.rows == rows ? 2 : 0) + (2 * (kernel.shared_bytes + reserved) <= per_processor);
        if (worth > best) {
            best = worth;
            choice.kernel = &kernel;
        }
    }
    if (!choice.kernel) return fail(Status::kUnsupported, "the card has too little shared memory");
    cudaFuncAttributes found;
    if (const cudaError_t error = cudaFuncGetAttributes(&found, choice.kernel->function); error != cudaSuccess)
        return fail("this build holds no code for the card", error);
    return Status::kOk;
}

std::int64_t plan_slots(const CudaAttention& a, int rows) noexcept {
    return slots_per_group(a.pattern->query_tiles, a.length_q, rows) * a.batch * a.heads;
}

// Items first (16 bytes each), then the counts.
std::size_t plan_bytes(const CudaAttention& a, int rows) noexcept {
    const std::int64_t slots = plan_slots(a, rows);
    return static_cast<std::size_t>(slots) * sizeof(Item) +
           static_cast<std::size_t>(kBuckets * plan_blocks(slots)) * sizeof(std::uint32_t);
}

Problem problem_of(const CudaAttention& a) noexcept {
    Problem p{};
    p.q = a.q;
    p.k = a.k;
    p.v = a.v;
    p.out = a.out;
    p.heads = static_cast<std::int32_t>(a.heads);
    p.length_q = static_cast<std::int32_t>(a.length_q);
    p.length_k = static_cast<std::int32_t>(a.length_k);
    p.head_dim = static_cast<std::int32_t>(a.head_dim);
    set_scale(p, a.scale);
    if (a.pattern) p.lists = *a.pattern;
    return p;
}

// Fills p.items by kernels on the stream.
Status plan(const CudaAttention& a, int rows, Problem& p) noexcept {
    if (!a.workspace || a.workspace_bytes < plan_bytes(a, rows))
        return fail(Status::kNoMemory, "the workspace is too small");
    Plan plan{};
    plan.lists = *a.pattern;
    plan.slots_per_group = slots_per_group(a.pattern->query_tiles, a.length_q, rows);
    plan.slots = plan_slots(a, rows);
    plan.rows = rows;
    plan.blocks = static_cast<std::int32_t>(plan_blocks(plan.slots));
    plan.items = static_cast<Item*>(a.workspace);
    plan.counts = reinterpret_cast<std::uint32_t*>(plan.items + plan.slots);
    p.items = plan.items;
    const cudaError_t error = make_plan(plan, static_cast<cudaStream_t>(a.stream));
    return error == cudaSuccess ? Status::kOk : fail("the plan of the tile lists", error);
}

Status launch(const CudaAttention& a, const Choice& choice) noexcept {
    const Kernel& kernel = *choice.kernel;
    Problem p = problem_of(a);
    p.row_tiles = static_cast<std::int32_t>((a.length_q + kernel.rows - 1) / kernel.rows);
    const std::int64_t blocks = a.pattern ? plan_slots(a, kernel.rows) : p.row_tiles * a.batch * a.heads;
    if (blocks > std::numeric_limits<std::int32_t>::max())
        return fail(Status::kUnsupported, "shape: more query blocks than one launch may have");
    HostMaps maps;
    if (choice.is_sm90)
        if (const char* found = make_maps(maps, a, kernel.D % 64 == 0 ? 64 : 32))
            return fail(Status::kUnsupported, found);
    cudaError_t error =
        cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize, kernel.shared_bytes);
    if (error != cudaSuccess) return fail("shared memory", error);
    if (a.pattern)
        if (const Status status = plan(a, kernel.rows, p); status != Status::kOk) return status;
    void* arguments[] = {&p, &maps};  // mma's kernels take the first alone
    error = cudaLaunchKernel(kernel.function, dim3(static_cast<unsigned>(blocks)),
                             dim3(static_cast<unsigned>(kernel.threads)), arguments,
                             static_cast<std::size_t>(kernel.shared_bytes), static_cast<cudaStream_t>(a.stream));
    return error == cudaSuccess ? Status::kOk : fail("the launch", error);
}

// Checks and chooses; the device is current as long as `current` is.
Status prepare(const CudaAttention& a, const Current& current, Choice& choice) noexcept {
    if (const Status status = check(a); status != Status::kOk) return status;
    if (!current.is_set()) {
        (void)cudaGetLastError();
        return fail(Status::kUnsupported, "there is no such card, or no driver");
    }
    return choose(a, choice);
}

}  // namespace

const char* cuda_attention_message() noexcept { return latest_message; }

const char* cuda_attention_obstacle(const CudaAttention& problem) noexcept {
    Choice choice;
    return prepare(problem, Current(problem.device), choice) == Status::kOk ? nullptr : latest_message;
}

std::size_t cuda_attention_workspace_bytes(const CudaAttention& problem) noexcept {
    Choice choice;
    if (prepare(problem, Current(problem.device), choice) != Status::kOk || !problem.pattern) return 0;
    return plan_bytes(problem, choice.kernel->rows);
}

const char* cuda_attention_backend(const CudaAttention& problem) noexcept {
    Choice choice;
    if (prepare(problem, Current(problem.device), choice) != Status::kOk) return nullptr;
    thread_local char name[64];
    std::snprintf(name, sizeof name, "cuda %s %dx%d", choice.is_sm90 ? "wgmma" : "mma", choice.kernel->rows,
                  choice.kernel->keys);
    return name;
}

Status cuda_attention_run(const CudaAttention& problem) noexcept {
    const Current current(problem.device);
    Choice choice;
    if (const Status status = prepare(problem, current, choice); status != Status::kOk) return status;
    if (!problem.q.data || !problem.k.data || !problem.v.data || !problem.out.data)
        return fail(Status::kInvalid, "q, k, v, out: a null pointer");
    return launch(problem, choice);
}

const char* cuda_build_architectures() noexcept { return RUSHES_CUDA_ARCHITECTURES; }
std::int32_t cuda_build_version() noexcept { return CUDART_VERSION; }

}  // namespace rushes
