#include "runtime/device/cuda/register.h"

namespace omni::cuda {

void RegisterCudaKernels(KernelRegistry& registry) {
  RegisterElementwise(registry);
  RegisterActivations(registry);
  RegisterNorms(registry);
  RegisterRows(registry);
  RegisterRope(registry);
  RegisterOptimizers(registry);
  RegisterMoeRoute(registry);
  RegisterMoeRows(registry);
  RegisterPooling(registry);
  RegisterRouterLosses(registry);
  RegisterSoftmaxParts(registry);
  RegisterLinear(registry);
  RegisterGroupedLinear(registry);
  RegisterConv(registry);
  RegisterCrossEntropy(registry);
  RegisterAttention(registry);
  RegisterNewtonSchulz(registry);
}

}  // namespace omni::cuda
