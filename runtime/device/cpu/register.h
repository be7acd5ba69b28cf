// One registration function per family of CPU kernels; RegisterCpuKernels calls them all.
#pragma once

#include "runtime/device/kernel_table.h"

namespace omni::cpu {

void RegisterElementwiseKernels(KernelRegistry& registry);
void RegisterOptimizerKernels(KernelRegistry& registry);
void RegisterRopeKernels(KernelRegistry& registry);
void RegisterAttentionKernels(KernelRegistry& registry);

}  // namespace omni::cpu
