// Matrix products on serial OpenBLAS under our own threads.
#pragma once

#include <cstdint>

#include "runtime/device/cpu/tasks.h"
#include "runtime/device/kernel_table.h"
#include "runtime/tensor/dtype.h"

namespace omni::cpu {

// C = A B + beta C, row-major: A [m, k] (or stored [k, m] if transposed), B likewise, C [m, n];
// beta 0 or 1. `bias` [n], if given, is added to each row of C (beta must be 0).
template <typename C>
struct Gemm {
  int64_t m = 0, n = 0, k = 0;
  const C* a = nullptr;
  int64_t lda = 0;
  bool a_transposed = false;
  const C* b = nullptr;
  int64_t ldb = 0;
  bool b_transposed = false;
  C* c = nullptr;
  int64_t ldc = 0;
  bool accumulate = false;
  const C* bias = nullptr;
};

// Cuts C into tiles by shape and multiplies them on the context's threads.
template <typename C>
void RunGemm(const KernelContext& context, const Gemm<C>& gemm);

}  // namespace omni::cpu
