#include "runtime/device/cpu/attention_kernel.h"

namespace omni::cpu {

AttentionKernels Avx512AttentionKernels() { return avx512::MakeAttentionKernels(); }

}  // namespace omni::cpu
