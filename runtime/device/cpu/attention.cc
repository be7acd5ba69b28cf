#include "runtime/device/cpu/attention.h"

#include "runtime/device/cpu/processor.h"

namespace omni::cpu {
namespace {

// The table keeps pointers to names, so they are literals, in the order of AttentionFunctions.
struct Names {
  const char *forward, *backward, *partial_forward, *partial_backward;
};

void RegisterAll(KernelRegistry& registry, DType dtype, const AttentionFunctions& kernels,
                 const Names& names, int32_t priority) {
  const auto add = [&](OpId op, const char* name, const KernelFunctions& functions) {
    registry.Register({.op = op,
                       .device = DeviceKind::kCpu,
                       .dtype = dtype,
                       .name = name,
                       .priority = priority,
                       .run = functions.run,
                       .supports = nullptr,
                       .scratch_bytes = functions.scratch_bytes});
  };
  add(OpId::kAttentionForward, names.forward, kernels.forward);
  add(OpId::kAttentionBackward, names.backward, kernels.backward);
  add(OpId::kAttentionPartialForward, names.partial_forward, kernels.partial_forward);
  add(OpId::kAttentionPartialBackward, names.partial_backward, kernels.partial_backward);
}

}  // namespace

void RegisterAttentionKernels(KernelRegistry& registry) {
  const AttentionKernels avx2 = Avx2AttentionKernels();
  RegisterAll(registry, DType::kFloat64, avx2.f64,
              {"f64_attention_fwd_cpu_avx2", "f64_attention_bwd_cpu_avx2",
               "f64_attention_partial_fwd_cpu_avx2", "f64_attention_partial_bwd_cpu_avx2"},
              0);
  RegisterAll(registry, DType::kFloat32, avx2.f32,
              {"f32_attention_fwd_cpu_avx2", "f32_attention_bwd_cpu_avx2",
               "f32_attention_partial_fwd_cpu_avx2", "f32_attention_partial_bwd_cpu_avx2"},
              0);
  RegisterAll(registry, DType::kBFloat16, avx2.bf16,
              {"bf16_attention_fwd_cpu_avx2", "bf16_attention_bwd_cpu_avx2",
               "bf16_attention_partial_fwd_cpu_avx2", "bf16_attention_partial_bwd_cpu_avx2"},
              0);
  if (!HasAvx512()) return;
  const AttentionKernels avx512 = Avx512AttentionKernels();
  RegisterAll(registry, DType::kFloat64, avx512.f64,
              {"f64_attention_fwd_cpu_avx512", "f64_attention_bwd_cpu_avx512",
               "f64_attention_partial_fwd_cpu_avx512", "f64_attention_partial_bwd_cpu_avx512"},
              10);
  RegisterAll(registry, DType::kFloat32, avx512.f32,
              {"f32_attention_fwd_cpu_avx512", "f32_attention_bwd_cpu_avx512",
               "f32_attention_partial_fwd_cpu_avx512", "f32_attention_partial_bwd_cpu_avx512"},
              10);
  RegisterAll(registry, DType::kBFloat16, avx512.bf16,
              {"bf16_attention_fwd_cpu_avx512", "bf16_attention_bwd_cpu_avx512",
               "bf16_attention_partial_fwd_cpu_avx512", "bf16_attention_partial_bwd_cpu_avx512"},
              10);
}

}  // namespace omni::cpu
