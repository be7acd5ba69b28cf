#include "runtime/device/cpu/register.h"
#include "runtime/device/cpu/row_kernels_entry.h"
#include "runtime/device/cpu/softmax_row_kernel.h"

namespace omni::cpu {

void RegisterAvx2RowKernels(KernelRegistry& registry) {
  avx2::RegisterRowKernelsOfTarget(registry);
}

template <>
SoftmaxRowFunctions<float> Avx2SoftmaxRow<float>() {
  return {&avx2::SoftmaxExponentials<float>, &avx2::SoftmaxScale<float>};
}
template <>
SoftmaxRowFunctions<double> Avx2SoftmaxRow<double>() {
  return {&avx2::SoftmaxExponentials<double>, &avx2::SoftmaxScale<double>};
}

}  // namespace omni::cpu
