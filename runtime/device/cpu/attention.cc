#include "runtime/device/cpu/attention.h"

#include "runtime/device/cpu/processor.h"

namespace omni::cpu {
namespace {

void RegisterSet(KernelRegistry& registry, const AttentionKernels& kernels, int32_t priority,
                 const char* const (&names)[6]) {
  const auto add = [&](OpId op, DType dtype, const char* name, const KernelFunctions& functions) {
    registry.Register({.op = op,
                       .device = DeviceKind::kCpu,
                       .dtype = dtype,
                       .name = name,
                       .priority = priority,
                       .run = functions.run,
                       .supports = nullptr,
                       .scratch_bytes = functions.scratch_bytes});
  };
  add(OpId::kAttentionForward, DType::kFloat64, names[0], kernels.f64_forward);
  add(OpId::kAttentionBackward, DType::kFloat64, names[1], kernels.f64_backward);
  add(OpId::kAttentionForward, DType::kFloat32, names[2], kernels.f32_forward);
  add(OpId::kAttentionBackward, DType::kFloat32, names[3], kernels.f32_backward);
  add(OpId::kAttentionForward, DType::kBFloat16, names[4], kernels.bf16_forward);
  add(OpId::kAttentionBackward, DType::kBFloat16, names[5], kernels.bf16_backward);
}

}  // namespace

void RegisterAttentionKernels(KernelRegistry& registry) {
  RegisterSet(
      registry, Avx2AttentionKernels(), 0,
      {"f64_attention_fwd_cpu_avx2", "f64_attention_bwd_cpu_avx2", "f32_attention_fwd_cpu_avx2",
       "f32_attention_bwd_cpu_avx2", "bf16_attention_fwd_cpu_avx2", "bf16_attention_bwd_cpu_avx2"});
  if (!HasAvx512()) return;
  RegisterSet(registry, Avx512AttentionKernels(), 10,
              {"f64_attention_fwd_cpu_avx512", "f64_attention_bwd_cpu_avx512",
               "f32_attention_fwd_cpu_avx512", "f32_attention_bwd_cpu_avx512",
               "bf16_attention_fwd_cpu_avx512", "bf16_attention_bwd_cpu_avx512"});
}

}  // namespace omni::cpu
