// Matrix products under our own threads: fp32 on our own kernels, fp64 on serial OpenBLAS.
#pragma once

#include <cstdint>

#include "runtime/device/cpu/processor.h"
#include "runtime/device/cpu/tasks.h"
#include "runtime/device/kernel_table.h"
#include "runtime/tensor/dtype.h"

namespace omni::cpu {

// What multiplies a tile. fp64 products are always OpenBLAS's, and kAvx512 only where HasAvx512().
enum class ProductKernel { kOpenBlas, kAvx2, kAvx512 };
inline ProductKernel BestProductKernel() {
  return HasAvx512() ? ProductKernel::kAvx512 : ProductKernel::kAvx2;
}

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
  ProductKernel kernel = BestProductKernel();
};

// Cuts C into tiles by shape and multiplies them on the context's threads.
template <typename C>
void RunGemm(const KernelContext& context, const Gemm<C>& gemm);

// `count` products that write different elements, their tiles in one round of tasks; to the bit
// what RunGemm makes of each. `first_tasks`: room for count + 1 numbers.
template <typename C>
void RunGemms(const KernelContext& context, const Gemm<C>* gemms, int64_t count,
              int64_t* first_tasks);

}  // namespace omni::cpu
