// Keys and values of one sequence, kept while tokens are added to it.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/device/exec_context.h"

namespace omni::backbone {

class KvCache {
 public:
  struct Layer {
    TensorView k_CKD, v_CKD;  // [capacity, kv heads, head_dim]
  };

  // Takes its memory from `arena`, which outlives it.
  KvCache(TensorArena& arena, DType dtype, int32_t num_layers, int64_t capacity, int64_t kv_heads,
          int64_t head_dim)
      : capacity_(capacity) {
    for (int32_t i = 0; i < num_layers; ++i) {
      layers_.push_back({.k_CKD = arena.New(dtype, {{capacity, kv_heads, head_dim}}),
                         .v_CKD = arena.New(dtype, {{capacity, kv_heads, head_dim}})});
    }
  }

  int64_t capacity() const { return capacity_; }  // tokens
  int64_t length() const { return length_; }      // tokens whose keys and values are there
  const Layer& layer(int32_t index) const { return layers_[index]; }
  void Advance(int64_t num_tokens) { length_ += num_tokens; }

 private:
  const int64_t capacity_;
  int64_t length_ = 0;
  std::vector<Layer> layers_;
};

}  // namespace omni::backbone
