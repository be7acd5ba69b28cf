// Counts the FLOPs a model's forward pass will spend on this data, and those of its backward
// pass, by walking the layers as the forward does: nothing padded, causal attention at half.
//
// A multiply-add is 2. Only matrix products count (linear maps, convolutions, attention);
// norms, activations and recomputation do not, as in every published MFU. Backward costs one
// product per trainable weight and one per input somebody wants the gradient of; attention's
// is twice its forward.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "runtime/ops/lora.h"
#include "runtime/ops/tape.h"

namespace omni {

struct FlopCount {
  int64_t forward = 0;
  int64_t backward = 0;

  int64_t total() const { return forward + backward; }
  FlopCount& operator+=(const FlopCount& other) {
    forward += other.forward;
    backward += other.backward;
    return *this;
  }
};

class FlopCounter {
 public:
  // `input_wants_grad`: something trainable lies before this module.
  explicit FlopCounter(bool input_wants_grad) : wants_grad_(input_wants_grad) {}

  // `rows` times a [out, in...] weight.
  void Linear(int64_t rows, const Weight& weight) { Adapted(rows, 1, weight); }

  // `rows`, each times one of the [groups, out, in] weight's groups.
  void GroupedLinear(int64_t rows, const Weight& weight) {
    Adapted(rows, weight.value.size(0), weight);
  }

  // Pairs of tokens that see each other in packed segments.
  static int64_t Pairs(absl::Span<const int32_t> cu_seqlens, bool causal) {
    int64_t pairs = 0;
    for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s) {
      const int64_t length = cu_seqlens[s + 1] - cu_seqlens[s];
      pairs += causal ? length * (length + 1) / 2 : length * length;
    }
    return pairs;
  }

  // Scores and weighted sum over packed segments, or over so many pairs.
  void Attention(absl::Span<const int32_t> cu_seqlens, int64_t num_heads, int64_t head_dim,
                 bool causal) {
    Attention(Pairs(cu_seqlens, causal), num_heads, head_dim);
  }
  void Attention(int64_t pairs, int64_t num_heads, int64_t head_dim) {
    const int64_t flops = 4 * pairs * num_heads * head_dim;
    count_.forward += flops;
    if (wants_grad_) count_.backward += 2 * flops;
  }

  // A parameter whose products are not worth counting (norm, bias, embedding).
  void Vector(const Weight& weight) { wants_grad_ = wants_grad_ || weight.trainable(); }

  const FlopCount& count() const { return count_; }
  bool wants_grad() const { return wants_grad_; }

 private:
  // Each row meets one of `groups` equal parts of the weight and of its adapter's two.
  void Adapted(int64_t rows, int64_t groups, const Weight& weight) {
    const auto flops = [&](const Weight& w) {
      return 2 * rows * (w.value.num_elements() / groups);
    };
    const bool wanted_grad = wants_grad_;
    Product(flops(weight), weight);
    if (weight.lora == nullptr) return;
    wants_grad_ = wanted_grad;
    Product(flops(weight.lora->a), weight.lora->a);
    Product(flops(weight.lora->b), weight.lora->b);
  }
  void Product(int64_t flops, const Weight& weight) {
    count_.forward += flops;
    if (weight.trainable()) count_.backward += flops;
    if (wants_grad_) count_.backward += flops;
    wants_grad_ = wants_grad_ || weight.trainable();
  }

  bool wants_grad_;
  FlopCount count_;
};

}  // namespace omni
