#include "runtime/device/cpu/processor.h"
#include "runtime/device/cpu/register.h"

namespace omni::cpu {

void RegisterRowVectorKernels(KernelRegistry& registry) {
  RegisterAvx2RowKernels(registry);
  if (HasAvx512()) RegisterAvx512RowKernels(registry);
}

}  // namespace omni::cpu
