#include "runtime/device/cpu/gemm_kernel.h"

namespace omni::cpu {

void RunGemmTileAvx2(const GemmTile& tile) { avx2::RunGemmTile(tile); }

}  // namespace omni::cpu
