#include "runtime/device/cpu/register.h"
#include "runtime/device/cpu/row_kernels_entry.h"
#include "runtime/device/cpu/softmax_row_kernel.h"

namespace omni::cpu {

void RegisterAvx512RowKernels(KernelRegistry& registry) {
  avx512::RegisterRowKernelsOfTarget(registry);
}

SoftmaxRowFunctions Avx512SoftmaxRow() {
  return {&avx512::RunSoftmaxRow<float>, &avx512::RunSoftmaxRow<double>};
}

}  // namespace omni::cpu
