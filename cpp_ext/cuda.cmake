# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
#
# `rushes_cuda`: the CUDA kernels, without Python or torch. CMAKE_CUDA_ARCHITECTURES chooses the cards. 90a gets the
# kernels with Hopper's own instructions, every other architecture those with mma.sync.

if(RUSHES_SANITIZE OR RUSHES_CUDA STREQUAL "OFF" OR (NOT RUSHES_CUDA STREQUAL "AUTO" AND NOT RUSHES_CUDA))
  return()  # the sanitizers know nothing of a card
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(NOT RUSHES_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "RUSHES_CUDA=${RUSHES_CUDA}: no CUDA compiler that works was found; AUTO and OFF build without")
  endif()
  message(STATUS "Rushes: no CUDA toolkit, so no kernels for NVIDIA cards")
  return()
endif()

if(NOT CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # or CMake keeps a choice of its own, which the next run would take for the user's
endif()
enable_language(CUDA)
set(architectures ${CMAKE_CUDA_ARCHITECTURES})
if(NOT architectures)
  # Real code for each, and PTX of the newest for cards that do not exist yet.
  set(architectures 80-real 86-real 89-real 90a-real)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
    list(APPEND architectures 89-virtual)
  else()
    list(APPEND architectures 100-real 120)
  endif()
endif()
set(hopper ${architectures})
list(FILTER hopper INCLUDE REGEX "^90a")
set(others ${architectures})
list(FILTER others EXCLUDE REGEX "^90a")
find_package(CUDAToolkit REQUIRED)

set(cuda_dir src/cuda)
set(cuda_objects)
# One file for a family, a head dimension and a dtype, so that they compile side by side.
function(rushes_cuda_family family architectures)
  set(sources)
  foreach(head_dim 64 96 128 256)
    foreach(dtype bf16 fp16)
      list(APPEND sources ${cuda_dir}/${family}_d${head_dim}_${dtype}.cu)
    endforeach()
  endforeach()
  add_library(rushes_cuda_${family} OBJECT ${sources})
  set_target_properties(rushes_cuda_${family} PROPERTIES CUDA_ARCHITECTURES "${architectures}")
  set(cuda_objects ${cuda_objects} rushes_cuda_${family} PARENT_SCOPE)
endfunction()
if(others)
  rushes_cuda_family(mma "${others}")
endif()
if(hopper)
  rushes_cuda_family(sm90 "${hopper}")
endif()

add_library(rushes_cuda_host OBJECT
  ${cuda_dir}/attention_cuda.cpp
  ${cuda_dir}/plan.cu
  ${cuda_dir}/tensor_maps.cpp
)
string(REGEX REPLACE "-real|-virtual" "" names "${architectures}")
list(REMOVE_DUPLICATES names)
list(JOIN names " " names)
target_compile_definitions(rushes_cuda_host PRIVATE
  RUSHES_CUDA_ARCHITECTURES="${names}"
  $<$<BOOL:${others}>:RUSHES_BUILD_MMA>
  $<$<BOOL:${hopper}>:RUSHES_BUILD_SM90>
)
set_target_properties(rushes_cuda_host PROPERTIES CUDA_ARCHITECTURES "${architectures}")
list(APPEND cuda_objects rushes_cuda_host)

add_library(rushes_cuda INTERFACE)
foreach(part ${cuda_objects})
  set_target_properties(${part} PROPERTIES
    POSITION_INDEPENDENT_CODE ON CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden)
  target_include_directories(${part} PRIVATE include ${cuda_dir})
  target_link_libraries(${part} PRIVATE CUDA::cudart_static)
  target_sources(rushes_cuda INTERFACE $<TARGET_OBJECTS:${part}>)
endforeach()
if(NOT MSVC)
  target_compile_options(rushes_cuda_host PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra>)
endif()
target_include_directories(rushes_cuda INTERFACE include)
target_link_libraries(rushes_cuda INTERFACE CUDA::cudart_static)  # static: torch brings a runtime of its own version
message(STATUS "Rushes: CUDA kernels for ${names}")
