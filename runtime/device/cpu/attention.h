// The attention kernels of one SIMD target, as the registration sees them.
#pragma once

#include <cstdint>

#include "runtime/device/kernel_table.h"

namespace omni::cpu {

struct KernelFunctions {
  int32_t (*run)(const void* args, const KernelContext* context);
  int64_t (*scratch_bytes)(const void* args);
};

struct AttentionFunctions {
  KernelFunctions forward, backward, partial_forward, partial_backward;
};

struct AttentionKernels {
  AttentionFunctions f64, f32, bf16;
};

AttentionKernels Avx2AttentionKernels();
AttentionKernels Avx512AttentionKernels();  // only where the processor has it

// Adds both sets; the AVX-512 ones at a higher priority, if the processor has it.
void RegisterAttentionKernels(KernelRegistry& registry);

}  // namespace omni::cpu
