// Registers the vectorised row kernels of the including file's SIMD target. Included once per
// target (row_kernels_avx2.cc, row_kernels_avx512.cc).
#pragma once

#include "runtime/device/cpu/activation_kernel.h"
#include "runtime/device/cpu/norm_kernel.h"

#define OMNI_STRING_(x) #x
#define OMNI_STRING(x) OMNI_STRING_(x)
#define OMNI_KERNEL_NAME(prefix, op) prefix "_" op "_cpu_" OMNI_STRING(OMNI_SIMD)

namespace omni::cpu::OMNI_SIMD {

#define OMNI_REGISTER(T, dtype, prefix)                                                         \
  do {                                                                                          \
    registry.Register(MakeEntry<NormForwardArgs, &Norm<T, false>::Forward>(                     \
        OpId::kRmsNormForward, dtype, OMNI_KERNEL_NAME(prefix, "rmsnorm_fwd"), priority));      \
    registry.Register(MakeEntry<NormBackwardArgs, &Norm<T, false>::Backward>(                   \
        OpId::kRmsNormBackward, dtype, OMNI_KERNEL_NAME(prefix, "rmsnorm_bwd"), priority));     \
    registry.Register(MakeEntry<NormForwardArgs, &Norm<T, true>::Forward>(                      \
        OpId::kLayerNormForward, dtype, OMNI_KERNEL_NAME(prefix, "layernorm_fwd"), priority));  \
    registry.Register(MakeEntry<NormBackwardArgs, &Norm<T, true>::Backward>(                    \
        OpId::kLayerNormBackward, dtype, OMNI_KERNEL_NAME(prefix, "layernorm_bwd"), priority)); \
    registry.Register(MakeEntry<SwiGluForwardArgs, &Activation<T>::SwiGluForward>(              \
        OpId::kSwiGluForward, dtype, OMNI_KERNEL_NAME(prefix, "swiglu_fwd"), priority));        \
    registry.Register(MakeEntry<SwiGluBackwardArgs, &Activation<T>::SwiGluBackward>(            \
        OpId::kSwiGluBackward, dtype, OMNI_KERNEL_NAME(prefix, "swiglu_bwd"), priority));       \
    registry.Register(MakeEntry<GeluForwardArgs, &Activation<T>::GeluForward>(                  \
        OpId::kGeluForward, dtype, OMNI_KERNEL_NAME(prefix, "gelu_fwd"), priority));            \
    registry.Register(MakeEntry<GeluBackwardArgs, &Activation<T>::GeluBackward>(                \
        OpId::kGeluBackward, dtype, OMNI_KERNEL_NAME(prefix, "gelu_bwd"), priority));           \
  } while (false)

inline void RegisterRowKernelsOfTarget(KernelRegistry& registry) {
  const int32_t priority = OMNI_SIMD_IS_AVX512 ? 10 : 0;
  OMNI_REGISTER(double, DType::kFloat64, "f64");
  OMNI_REGISTER(float, DType::kFloat32, "f32");
  OMNI_REGISTER(BFloat16, DType::kBFloat16, "bf16");
}

#undef OMNI_REGISTER

}  // namespace omni::cpu::OMNI_SIMD
