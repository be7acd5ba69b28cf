#include "runtime/device/cpu/attention_kernel.h"

namespace omni::cpu {

AttentionKernels Avx2AttentionKernels() { return avx2::MakeAttentionKernels(); }

}  // namespace omni::cpu
