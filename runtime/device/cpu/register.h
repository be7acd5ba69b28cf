// One registration function per family of CPU kernels; RegisterCpuKernels calls them all.
#pragma once

#include "runtime/device/kernel_table.h"

namespace omni::cpu {

void RegisterElementwiseKernels(KernelRegistry& registry);
void RegisterOptimizerKernels(KernelRegistry& registry);
void RegisterRopeKernels(KernelRegistry& registry);
void RegisterAttentionKernels(KernelRegistry& registry);
void RegisterCachedAttentionKernels(KernelRegistry& registry);
void RegisterLinearKernels(KernelRegistry& registry);
void RegisterRowKernels(KernelRegistry& registry);  // embedding, gather, scatter
void RegisterConvKernels(KernelRegistry& registry);
void RegisterCrossEntropyKernels(KernelRegistry& registry);
void RegisterSoftmaxPartKernels(KernelRegistry& registry);
void RegisterMoeRouteKernels(KernelRegistry& registry);
void RegisterMoeRowKernels(KernelRegistry& registry);
void RegisterGroupedLinearKernels(KernelRegistry& registry);
void RegisterRouterLossKernels(KernelRegistry& registry);
// Norms and activations: for both SIMD targets, the AVX-512 ones where the processor has it and
// then at a higher priority.
void RegisterRowVectorKernels(KernelRegistry& registry);
void RegisterAvx2RowKernels(KernelRegistry& registry);
void RegisterAvx512RowKernels(KernelRegistry& registry);

}  // namespace omni::cpu
