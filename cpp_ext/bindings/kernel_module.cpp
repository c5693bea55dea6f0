// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
//
// The Python module rushes.attention._kernel. Nothing is computed here: arguments in, results out.
#include <pybind11/pybind11.h>

#include "rushes/build_info.h"
#include "rushes/cpu_features.h"

namespace py = pybind11;

namespace {

py::dict cpu_features() {
    const rushes::CpuFeatures found = rushes::detect_cpu_features();
    py::dict features;
    features["avx2"] = found.avx2;
    features["fma"] = found.fma;
    features["f16c"] = found.f16c;
    features["avx512f"] = found.avx512f;
    features["avx512_bf16"] = found.avx512_bf16;
    features["amx_bf16"] = found.amx_bf16;
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

}  // namespace

PYBIND11_MODULE(_kernel, module) {
    module.doc() = "The compiled part of Rushes.";
    module.def("cpu_features", &cpu_features,
               "Instruction sets this process may use: name -> bool, asked of processor and operating system.");
    module.def("build_info", &build_info, "What this binary was built from and with: version, compiler, architecture.");
}
