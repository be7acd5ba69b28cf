#include "runtime/device/cpu/register.h"
#include "runtime/device/cpu/row_kernels_entry.h"
#include "runtime/device/cpu/softmax_row_kernel.h"

namespace omni::cpu {

void RegisterAvx512RowKernels(KernelRegistry& registry) {
  avx512::RegisterRowKernelsOfTarget(registry);
}

template <>
SoftmaxRowFunctions<float> Avx512SoftmaxRow<float>() {
  return {&avx512::SoftmaxExponentials<float>, &avx512::SoftmaxScale<float>};
}
template <>
SoftmaxRowFunctions<double> Avx512SoftmaxRow<double>() {
  return {&avx512::SoftmaxExponentials<double>, &avx512::SoftmaxScale<double>};
}

}  // namespace omni::cpu
