#include "runtime/device/cpu/register.h"

namespace omni {

void RegisterCpuKernels(KernelRegistry& registry) {
  cpu::RegisterElementwiseKernels(registry);
  cpu::RegisterOptimizerKernels(registry);
  cpu::RegisterRopeKernels(registry);
  cpu::RegisterAttentionKernels(registry);
  cpu::RegisterCachedAttentionKernels(registry);
  cpu::RegisterLinearKernels(registry);
  cpu::RegisterRowKernels(registry);
  cpu::RegisterRowVectorKernels(registry);
  cpu::RegisterConvKernels(registry);
  cpu::RegisterCrossEntropyKernels(registry);
  cpu::RegisterSoftmaxPartKernels(registry);
  cpu::RegisterMoeRouteKernels(registry);
  cpu::RegisterMoeRowKernels(registry);
  cpu::RegisterGroupedLinearKernels(registry);
  cpu::RegisterRouterLossKernels(registry);
}

}  // namespace omni
