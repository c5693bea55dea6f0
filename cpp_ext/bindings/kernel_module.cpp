// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// The Python module rushes.attention._kernel. Nothing is computed here: arguments in, results out.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <new>
#include <optional>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "rushes/attention.h"
#include "rushes/build_info.h"
#include "rushes/cpu_features.h"
#include "rushes/threads.h"

namespace py = pybind11;

namespace {

py::dict cpu_features() {
    const rushes::CpuFeatures found = rushes::detect_cpu_features();
    py::dict features;
    features["avx2"] = found.avx2;
    features["fma"] = found.fma;
    features["f16c"] = found.f16c;
    features["avx512f"] = found.avx512f;
    features["avx512bw"] = found.avx512bw;
    features["avx512dq"] = found.avx512dq;
    features["avx512vl"] = found.avx512vl;
    features["avx512_bf16"] = found.avx512_bf16;
    features["amx_bf16"] = found.amx_bf16;
    features["amx_int8"] = found.amx_int8;
    features["neon"] = found.neon;
    return features;
}

py::dict build_info() {
    py::dict info;
    info["version"] = rushes::build_version();
    info["compiler"] = rushes::build_compiler();
    info["architecture"] = rushes::build_architecture();
    return info;
}

struct Cancelled : std::exception {};

// Grows to the largest problem of its thread and stays, so that later calls allocate nothing.
class Workspace {
public:
    ~Workspace() { release(); }
    void* at_least(std::size_t bytes) {
        if (bytes > bytes_) {
            release();
            place_ = ::operator new(bytes, kAlignment);
            bytes_ = bytes;
#if defined(MADV_HUGEPAGE)
            madvise(place_, bytes, MADV_HUGEPAGE);  // advice: where the system has none to give, small ones serve
#endif
        }
        return place_;
    }
    void release() {
        ::operator delete(place_, kAlignment);
        place_ = nullptr;
        bytes_ = 0;
    }
    std::size_t bytes() const { return bytes_; }

private:
    // Tiles are read all over the packed keys and values; with 4 KiB pages that misses the processor's table of pages.
    static constexpr std::align_val_t kAlignment{std::size_t{2} << 20};
    void* place_ = nullptr;
    std::size_t bytes_ = 0;
};

thread_local Workspace workspace;

// Asks Python whether to stop, at most every kPause: taking the interpreter's lock after each tile would cost more than
// a small tile. An error in the question stops the call and is raised afterwards.
struct Question {
    static constexpr std::chrono::milliseconds kPause{10};
    py::object is_cancelled;
    std::chrono::steady_clock::time_point next{};
    std::exception_ptr error;

    static std::int32_t ask(void* context) {
        Question& self = *static_cast<Question*>(context);
        const auto now = std::chrono::steady_clock::now();
        if (now < self.next) return 0;
        self.next = now + kPause;
        const py::gil_scoped_acquire lock;
        try {
            return self.is_cancelled().cast<bool>() ? 1 : 0;
        } catch (...) {  // what it raises, or an answer that is no bool
            self.error = std::current_exception();
            return 1;
        }
    }
};

using Strides = std::array<std::int64_t, 4>;
using Place = std::pair<std::uintptr_t, Strides>;  // address, strides in elements
using Offsets = py::array_t<std::int64_t, py::array::c_style>;
using Tiles = py::array_t<std::int32_t, py::array::c_style>;
using Lists = std::tuple<Offsets, Offsets, Offsets, Tiles>;  // query_start, key_start, offsets, tiles
using Shape = std::array<std::int64_t, 5>;                   // batch, heads, length_q, length_k, head_dim

rushes::Tensor tensor(const Place& place) {
    rushes::Tensor result{reinterpret_cast<void*>(place.first), {}};
    for (int i = 0; i < 4; ++i) result.strides[i] = place.second[i];
    return result;
}

// Lengths are checked here, as plain pointers no longer tell them; what is in the lists is checked by the kernel.
rushes::TileLists tile_lists(const Lists& lists) {
    const auto& [query_start, key_start, offsets, tiles] = lists;
    rushes::TileLists result{};
    result.query_tiles = query_start.size() - 1;
    result.key_tiles = key_start.size() - 1;
    if (result.query_tiles < 1 || result.key_tiles < 1 || offsets.size() < 2 ||
        (offsets.size() - 1) % result.query_tiles)
        throw py::value_error("pattern: offsets must hold a whole number of sets of lists, and one more");
    result.sets = (offsets.size() - 1) / result.query_tiles;
    result.query_start = query_start.data();
    result.key_start = key_start.data();
    result.offsets = offsets.data();
    result.tiles = tiles.data();
    for (py::ssize_t i = 0; i + 1 < offsets.size(); ++i)
        if (offsets.at(i) < 0 || offsets.at(i + 1) > tiles.size())
            throw py::value_error("pattern: offsets must point into tiles");
    return result;
}

rushes::Attention problem_of(const Shape& shape, int dtype, int precision, int isa, int threads) {
    rushes::Attention problem{};
    problem.batch = shape[0];
    problem.heads = shape[1];
    problem.length_q = shape[2];
    problem.length_k = shape[3];
    problem.head_dim = shape[4];
    problem.dtype = static_cast<rushes::Dtype>(dtype);
    problem.precision = static_cast<rushes::Precision>(precision);
    problem.isa = static_cast<rushes::Isa>(isa);
    problem.scale = 1.0f;
    problem.threads = threads;
    return problem;
}

void attention(const Shape& shape, const Place& q, const Place& k, const Place& v, const Place& out, float scale,
               int dtype, int precision, int isa, int threads, const std::optional<Lists>& lists,
               py::object cancelled) {
    rushes::Attention problem = problem_of(shape, dtype, precision, isa, threads);
    problem.scale = scale;
    problem.q = tensor(q);
    problem.k = tensor(k);
    problem.v = tensor(v);
    problem.out = tensor(out);
    rushes::TileLists pattern{};
    if (lists) {
        pattern = tile_lists(*lists);
        problem.pattern = &pattern;
    }
    Question question{std::move(cancelled)};
    if (!question.is_cancelled.is_none()) {
        problem.cancelled = &Question::ask;
        problem.cancel_context = &question;
    }
    const std::size_t bytes = rushes::attention_workspace_bytes(problem);
    if (bytes == 0) throw py::value_error(rushes::attention_message());
    problem.workspace = workspace.at_least(bytes);
    problem.workspace_bytes = workspace.bytes();
    rushes::Status status;
    {
        const py::gil_scoped_release unlocked;
        status = rushes::attention_run(problem);
    }
    if (question.error) std::rethrow_exception(question.error);
    if (status == rushes::Status::kCancelled) throw Cancelled();
    if (status != rushes::Status::kOk) throw std::runtime_error(rushes::attention_message());
}

std::optional<std::string> attention_backend(const Shape& shape, int dtype, int precision, int isa) {
    const char* name = rushes::attention_backend(problem_of(shape, dtype, precision, isa, 1));
    return name ? std::optional<std::string>(name) : std::nullopt;
}

void share_threads(std::uintptr_t parallel, std::uintptr_t thread_num, std::uintptr_t max_threads,
                   std::uintptr_t in_parallel) {
    if (!parallel || !thread_num || !max_threads || !in_parallel)
        throw py::value_error("share_threads: got an address of 0; four functions are needed");
    rushes::OpenMp openmp{};
    openmp.GOMP_parallel = reinterpret_cast<decltype(openmp.GOMP_parallel)>(parallel);
    openmp.omp_get_thread_num = reinterpret_cast<decltype(openmp.omp_get_thread_num)>(thread_num);
    openmp.omp_get_max_threads = reinterpret_cast<decltype(openmp.omp_get_max_threads)>(max_threads);
    openmp.omp_in_parallel = reinterpret_cast<decltype(openmp.omp_in_parallel)>(in_parallel);
    rushes::share_threads(openmp);
}

}  // namespace

PYBIND11_MODULE(_kernel, module) {
    module.doc() = "The compiled part of Rushes.";
    module.def("cpu_features", &cpu_features,
               "Instruction sets this process may use: name -> bool, asked of processor and operating system.");
    module.def("build_info", &build_info, "What this binary was built from and with: version, compiler, architecture.");
    py::register_exception<Cancelled>(module, "Cancelled");
    module.def("attention", &attention, py::kw_only(), py::arg("shape"), py::arg("q"), py::arg("k"), py::arg("v"),
               py::arg("out"), py::arg("scale"), py::arg("dtype"), py::arg("precision"), py::arg("isa"),
               py::arg("threads"), py::arg("lists") = py::none(), py::arg("cancelled") = py::none(),
               "Writes softmax(q k^T * scale) v to out. q, k, v, out: (address, strides in elements).");
    module.def("attention_backend", &attention_backend, py::kw_only(), py::arg("shape"), py::arg("dtype"),
               py::arg("precision"), py::arg("isa"), "The code that would compute it; None when it is refused.");
    module.def("attention_message", &rushes::attention_message, "Why this thread's latest problem was refused.");
    module.def("share_threads", &share_threads, py::arg("GOMP_parallel"), py::arg("omp_get_thread_num"),
               py::arg("omp_get_max_threads"), py::arg("omp_in_parallel"),
               "Runs on the threads of the OpenMP runtime that has these functions. The first call decides.");
    module.def(
        "release_workspace", [] { workspace.release(); }, "Gives back the memory that this thread's calls keep.");
}
