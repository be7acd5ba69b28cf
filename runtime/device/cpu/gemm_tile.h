// Our own fp32 products of one tile, in place of OpenBLAS (gemm.cc).
#pragma once

#include <cstdint>

namespace omni::cpu {

// One tile of C: rows x columns over the whole depth. As Gemm (gemm.h), but on one thread.
// `bias` [columns] or null starts the sums, unless they start from C (accumulate).
struct GemmTile {
  int64_t rows, columns, depth;
  const float* a;
  int64_t lda;
  bool a_transposed;
  const float* b;
  int64_t ldb;
  bool b_transposed;
  float* c;
  int64_t ldc;
  bool accumulate;
  const float* bias;
};
void RunGemmTileAvx2(const GemmTile& tile);
void RunGemmTileAvx512(const GemmTile& tile);  // only where the processor has it

}  // namespace omni::cpu
