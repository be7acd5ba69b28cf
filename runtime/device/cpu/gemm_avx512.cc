#include "runtime/device/cpu/gemm_kernel.h"

namespace omni::cpu {

void RunGemmTileAvx512(const GemmTile& tile) { avx512::RunGemmTile(tile); }

}  // namespace omni::cpu
