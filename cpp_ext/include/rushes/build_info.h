// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#pragma once

namespace rushes {

// Version of the package that this binary was built from, such as "0.1.0".
const char* build_version() noexcept;

// Compiler and its version, such as "GCC 12.2.0".
const char* build_compiler() noexcept;

// Architecture that the code was compiled for: "x86_64", "x86", "arm64", "arm" or "other".
const char* build_architecture() noexcept;

}  // namespace rushes
