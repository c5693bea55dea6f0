// SPDX-License-Identifier: Apache-2.0
// Copyright Contributors to the Rushes project
#include "plan.h"

#include "plan_kernels.h"

namespace rushes::cuda {
namespace {

__global__ void __launch_bounds__(kSlots) count_kernel(const __grid_constant__ Plan plan) { plan_count(plan); }
__global__ void __launch_bounds__(kSlots) sum_kernel(const __grid_constant__ Plan plan) { plan_sum(plan); }
__global__ void __launch_bounds__(kSlots) place_kernel(const __grid_constant__ Plan plan) { plan_place(plan); }

}  // namespace

cudaError_t make_plan(const Plan& plan, cudaStream_t stream) {
    const unsigned blocks = static_cast<unsigned>(plan.blocks);
    count_kernel<<<blocks, kSlots, sizeof(PlanDesk), stream>>>(plan);
    sum_kernel<<<1, kSlots, sizeof(PlanDesk), stream>>>(plan);
    place_kernel<<<blocks, kSlots, sizeof(PlanDesk), stream>>>(plan);
    return cudaGetLastError();
}

}  // namespace rushes::cuda
