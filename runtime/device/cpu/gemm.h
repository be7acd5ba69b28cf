// Matrix products under our own threads: fp32 on our AVX-512 kernel where the processor has it,
// all else on serial OpenBLAS.
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
  bool use_avx512 = true;  // false: OpenBLAS even where our own kernel would do
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
