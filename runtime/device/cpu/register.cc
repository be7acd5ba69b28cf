#include "runtime/device/cpu/register.h"

#include "runtime/device/cpu/blas.h"

namespace omni {

void RegisterCpuKernels(KernelRegistry& registry) {
  cpu::UseWidestBlasKernels();
  cpu::RegisterElementwiseKernels(registry);
  cpu::RegisterOptimizerKernels(registry);
  cpu::RegisterRopeKernels(registry);
  cpu::RegisterAttentionKernels(registry);
  cpu::RegisterLinearKernels(registry);
  cpu::RegisterRowKernels(registry);
  cpu::RegisterRowVectorKernels(registry);
  cpu::RegisterConvKernels(registry);
  cpu::RegisterCrossEntropyKernels(registry);
}

}  // namespace omni
