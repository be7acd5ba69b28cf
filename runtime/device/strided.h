// A view as what is contiguous in it.
#pragma once

#include "runtime/tensor/view.h"

namespace omni {

// body(first byte, offset in a dense copy, bytes) for each contiguous run, in order.
template <typename Body>
void ForEachRun(const TensorView& view, const Body& body) {
  if (view.num_elements() == 0) return;
  auto* const base = static_cast<std::byte*>(view.data);
  if (view.is_dense()) return body(base, int64_t{0}, view.num_bytes());
  const auto element = static_cast<int64_t>(SizeOf(view.dtype));
  const int last = view.num_dims - 1;
  const int64_t run = view.sizes[last] * element;
  int64_t position[kMaxDims] = {};
  for (int64_t dense = 0;; dense += run) {
    int64_t offset = 0;
    for (int d = 0; d < last; ++d) offset += position[d] * view.strides[d];
    body(base + offset * element, dense, run);
    int d = last - 1;
    while (d >= 0 && ++position[d] == view.sizes[d]) position[d--] = 0;
    if (d < 0) return;
  }
}

}  // namespace omni
