// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// The Python module rushes.attention._kernel_cuda: addresses and numbers in, nothing computed. Apart from _kernel, so
// that a machine without a card never loads it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <string>

#include "rushes/attention_cuda.h"

namespace py = pybind11;

namespace {

using Strides = std::array<std::int64_t, 4>;
using Place = std::pair<std::uintptr_t, Strides>;               // address on the device, strides in elements
using Shape = std::array<std::int64_t, 5>;                      // batch, heads, length_q, length_k, head_dim
using Card = std::pair<std::int32_t, std::uintptr_t>;           // device, stream
using Memory = std::pair<std::uintptr_t, std::size_t>;          // address on the device, bytes
using Counts = std::array<std::int64_t, 4>;                     // query_tiles, key_tiles, sets, most_query_rows
using Lists = std::pair<Counts, std::array<std::uintptr_t, 4>>;  // ..., query_start, key_start, offsets, tiles

rushes::Tensor tensor(const Place& place) {
    rushes::Tensor result{reinterpret_cast<void*>(place.first), {}};
    for (int i = 0; i < 4; ++i) result.strides[i] = place.second[i];
    return result;
}

// A problem, and its lists, to which it points.
struct Problem {
    rushes::CudaAttention attention{};
    rushes::TileLists pattern{};

    Problem(const Shape& shape, const std::array<Place, 4>& places, float scale, int dtype, const Card& card,
            const std::optional<Lists>& lists) {
        rushes::CudaAttention& a = attention;
        a.batch = shape[0];
        a.heads = shape[1];
        a.length_q = shape[2];
        a.length_k = shape[3];
        a.head_dim = shape[4];
        a.dtype = static_cast<rushes::Dtype>(dtype);
        a.scale = scale;
        a.q = tensor(places[0]);
        a.k = tensor(places[1]);
        a.v = tensor(places[2]);
        a.out = tensor(places[3]);
        a.device = card.first;
        a.stream = reinterpret_cast<void*>(card.second);
        if (!lists) return;
        const auto& [counts, arrays] = *lists;
        pattern.query_tiles = counts[0];
        pattern.key_tiles = counts[1];
        pattern.sets = counts[2];
        pattern.query_start = reinterpret_cast<const std::int64_t*>(arrays[0]);
        pattern.key_start = reinterpret_cast<const std::int64_t*>(arrays[1]);
        pattern.offsets = reinterpret_cast<const std::int64_t*>(arrays[2]);
        pattern.tiles = reinterpret_cast<const std::int32_t*>(arrays[3]);
        a.most_query_rows = counts[3];
        a.pattern = &pattern;
    }
    Problem(const Problem&) = delete;
    Problem& operator=(const Problem&) = delete;
};

void cuda_run(const Shape& shape, const std::array<Place, 4>& places, float scale, int dtype, const Card& card,
              const std::optional<Lists>& lists, const Memory& workspace) {
    Problem problem(shape, places, scale, dtype, card, lists);
    problem.attention.workspace = reinterpret_cast<void*>(workspace.first);
    problem.attention.workspace_bytes = workspace.second;
    rushes::Status status;
    {
        const py::gil_scoped_release unlocked;
        status = rushes::cuda_attention_run(problem.attention);
    }
    if (status != rushes::Status::kOk) throw std::runtime_error(rushes::cuda_attention_message());
}

// One sentence, or None.
std::optional<std::string> cuda_obstacle(const Shape& shape, const std::array<Place, 4>& places, float scale, int dtype,
                                         const Card& card, const std::optional<Lists>& lists) {
    const Problem problem(shape, places, scale, dtype, card, lists);
    const char* found = rushes::cuda_attention_obstacle(problem.attention);
    return found ? std::optional<std::string>(found) : std::nullopt;
}

std::optional<std::string> cuda_backend(const Shape& shape, const std::array<Place, 4>& places, float scale, int dtype,
                                        const Card& card, const std::optional<Lists>& lists) {
    const Problem problem(shape, places, scale, dtype, card, lists);
    const char* name = rushes::cuda_attention_backend(problem.attention);
    return name ? std::optional<std::string>(name) : std::nullopt;
}

std::size_t cuda_workspace_bytes(const Shape& shape, const std::array<Place, 4>& places, float scale, int dtype,
                                 const Card& card, const std::optional<Lists>& lists) {
    return rushes::cuda_attention_workspace_bytes(Problem(shape, places, scale, dtype, card, lists).attention);
}

py::dict build_info() {
    py::dict info;
    info["version"] = RUSHES_VERSION;
    info["architectures"] = rushes::cuda_build_architectures();
    info["cuda"] = rushes::cuda_build_version();
    return info;
}

}  // namespace

PYBIND11_MODULE(_kernel_cuda, module) {
    module.doc() = "The compiled part of Rushes for NVIDIA cards.";
    module.def("build_info", &build_info,
               "version of the package; architectures that there is code for; cuda: the toolkit's version, 13000.");
    const auto define = [&](const char* name, auto function, const char* text, auto... more) {
        module.def(name, function, py::kw_only(), py::arg("shape"), py::arg("places"), py::arg("scale"),
                   py::arg("dtype"), py::arg("card"), py::arg("lists"), more..., text);
    };
    define("cuda_run", &cuda_run, "Asks for softmax(q k^T * scale) v on the stream. places: q, k, v, out.",
           py::arg("workspace"));
    define("cuda_obstacle", &cuda_obstacle, "Why it would be refused; None when it would not.");
    define("cuda_backend", &cuda_backend, "The code that would compute it; None when it is refused.");
    define("cuda_workspace_bytes", &cuda_workspace_bytes, "What cuda_run needs; 0 when dense or refused.");
}
