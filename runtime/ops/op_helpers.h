// What ops share: those of this folder, and of parallel/ops. Private to the two.
#pragma once

#include "runtime/ops/tape.h"

namespace omni {

// Weight gradients, statistics and losses: fp32, but fp64 for fp64.
inline DType AccumulationType(DType dtype) {
  return dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

inline bool Trains(const Weight* weight) { return weight != nullptr && weight->trainable(); }

inline bool Recording(const ExecContext& ctx, absl::Span<const Var> inputs, bool trains_weights) {
  return ctx.tape != nullptr && Tape::Records(inputs, trains_weights);
}

inline void CheckRank(const TensorView& view, int rank) {
  OMNI_CHECK_EQ(static_cast<int>(view.num_dims), rank);
}

// The bounds of segments that fill `num_rows` rows.
inline void CheckSeqlens(absl::Span<const int32_t> cu_seqlens, int64_t num_rows) {
  OMNI_CHECK(!cu_seqlens.empty());
  OMNI_CHECK_EQ(cu_seqlens.front(), 0);
  OMNI_CHECK_EQ(static_cast<int64_t>(cu_seqlens.back()), num_rows);
  for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s)
    OMNI_CHECK_LE(cu_seqlens[s], cu_seqlens[s + 1]);
}

// A weight of this shape in the dtype of the activations, with a gradient of the right type.
inline void CheckWeight(const Weight& weight, std::initializer_list<int64_t> shape, DType dtype) {
  CheckRank(weight.value, static_cast<int>(shape.size()));
  int dim = 0;
  for (const int64_t size : shape) OMNI_CHECK_EQ(weight.value.size(dim++), size);
  OMNI_CHECK(weight.value.dtype == dtype);
  if (!weight.trainable()) return;
  OMNI_CHECK(weight.grad.shape() == weight.value.shape());
  OMNI_CHECK(weight.grad.dtype == AccumulationType(dtype));
}

}  // namespace omni
