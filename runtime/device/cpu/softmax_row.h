// One row of the softmax cross-entropy, for each SIMD target.
#pragma once

#include <cstdint>

namespace omni::cpu {

template <typename C>
struct SoftmaxRow {
  C* logits = nullptr;  // [num_classes]; becomes the gradient if grad_scale is not 0
  int64_t num_classes = 0;
  int64_t target = 0;
  C grad_scale = 0;    // gradient: grad_scale * (softmax - onehot(target))
  C loss = 0;          // -log softmax[target]
  int32_t argmax = 0;  // lowest among equals
};

// A table of functions for one target.
struct SoftmaxRowFunctions {
  void (*f32)(SoftmaxRow<float>* row);
  void (*f64)(SoftmaxRow<double>* row);
};
SoftmaxRowFunctions Avx2SoftmaxRow();
SoftmaxRowFunctions Avx512SoftmaxRow();  // only where the processor has it

}  // namespace omni::cpu
