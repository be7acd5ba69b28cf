// One registration function for each file of kernels; RegisterCudaKernels calls them all.
#pragma once

#include "runtime/device/kernel_table.h"

namespace omni::cuda {

// Adds the CUDA kernels there are (DeviceKind::kCuda): fp64, fp32 and bf16. `run` launches on the
// stream of the context and returns 0, or a negated cudaError_t.
void RegisterCudaKernels(KernelRegistry& registry);

void RegisterElementwise(KernelRegistry& registry);
void RegisterActivations(KernelRegistry& registry);
void RegisterNorms(KernelRegistry& registry);
void RegisterRows(KernelRegistry& registry);
void RegisterRope(KernelRegistry& registry);
void RegisterOptimizers(KernelRegistry& registry);
void RegisterMoeRoute(KernelRegistry& registry);
void RegisterMoeRows(KernelRegistry& registry);
void RegisterPooling(KernelRegistry& registry);
void RegisterRouterLosses(KernelRegistry& registry);
void RegisterSoftmaxParts(KernelRegistry& registry);
void RegisterLinear(KernelRegistry& registry);
void RegisterGroupedLinear(KernelRegistry& registry);
void RegisterConv(KernelRegistry& registry);
void RegisterCrossEntropy(KernelRegistry& registry);
void RegisterAttention(KernelRegistry& registry);
void RegisterNewtonSchulz(KernelRegistry& registry);

}  // namespace omni::cuda
