#include "runtime/device/cpu/register.h"
#include "runtime/device/cpu/row_kernels_entry.h"
#include "runtime/device/cpu/softmax_row_kernel.h"

namespace omni::cpu {

void RegisterAvx2RowKernels(KernelRegistry& registry) {
  avx2::RegisterRowKernelsOfTarget(registry);
}

SoftmaxRowFunctions Avx2SoftmaxRow() {
  return {&avx2::RunSoftmaxRow<float>, &avx2::RunSoftmaxRow<double>};
}

}  // namespace omni::cpu
