#include "runtime/device/cpu/register.h"

namespace omni {

void RegisterCpuKernels(KernelRegistry& registry) {
  cpu::RegisterElementwiseKernels(registry);
  cpu::RegisterRopeKernels(registry);
  cpu::RegisterAttentionKernels(registry);
}

}  // namespace omni
