// One row of a softmax, for each SIMD target.
#pragma once

#include <cstdint>

namespace omni::cpu {

template <typename C>
struct SoftmaxRow {
  C* logits = nullptr;              // [num_classes]
  int64_t num_classes = 0;          // >= 1
  bool keeps_exponentials = false;  // logits become exp(logit - top)
  C top = 0;                        // the largest logit
  C sum = 0;                        // of exp(logit - top)
  int32_t argmax = 0;               // lowest among equals
};

// A table of functions for one target.
template <typename C>
struct SoftmaxRowFunctions {
  void (*exponentials)(SoftmaxRow<C>* row);
  void (*scale)(C* values, int64_t count, C factor);  // values *= factor
};
template <typename C>
SoftmaxRowFunctions<C> Avx2SoftmaxRow();
template <typename C>
SoftmaxRowFunctions<C> Avx512SoftmaxRow();  // only where the processor has it
template <>
SoftmaxRowFunctions<float> Avx2SoftmaxRow<float>();
template <>
SoftmaxRowFunctions<double> Avx2SoftmaxRow<double>();
template <>
SoftmaxRowFunctions<float> Avx512SoftmaxRow<float>();
template <>
SoftmaxRowFunctions<double> Avx512SoftmaxRow<double>();

}  // namespace omni::cpu
