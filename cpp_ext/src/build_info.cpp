// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#include "rushes/build_info.h"

#define RUSHES_STRINGIFY_(x) #x
#define RUSHES_STRINGIFY(x) RUSHES_STRINGIFY_(x)

namespace rushes {

const char* build_version() noexcept { return RUSHES_VERSION; }

const char* build_compiler() noexcept {
    // Clang first: it also defines __GNUC__, and clang-cl also defines _MSC_VER.
#if defined(__clang__)
    return "Clang " __clang_version__;
#elif defined(__GNUC__)
    return "GCC " __VERSION__;
#elif defined(_MSC_FULL_VER)
    return "MSVC " RUSHES_STRINGIFY(_MSC_FULL_VER);
#else
    return "unknown compiler";
#endif
}

const char* build_architecture() noexcept {
    // ARM64EC defines _M_X64 as well, so Arm is asked first.
#if defined(__aarch64__) || defined(_M_ARM64) || defined(_M_ARM64EC)
    return "arm64";
#elif defined(__arm__) || defined(_M_ARM)
    return "arm";
#elif defined(__x86_64__) || defined(_M_X64)
    return "x86_64";
#elif defined(__i386__) || defined(_M_IX86)
    return "x86";
#else
    return "other";
#endif
}

}  // namespace rushes
