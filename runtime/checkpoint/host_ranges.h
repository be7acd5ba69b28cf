// Ranges of tensors on a device, as the host memory that files are read into.
#pragma once

#include <vector>

#include "runtime/checkpoint/tensor_source.h"
#include "runtime/device/exec_context.h"

namespace omni {

// Of a device whose memory is the host's: the ranges themselves. Else room for each, which Upload
// brings to where they lie.
class HostRanges {
 public:
  HostRanges(const ExecContext& ctx, std::vector<TensorRange> ranges);
  const std::vector<TensorRange>& ranges() const { return host_; }
  // Once they are filled. In the order of the context's stream.
  void Upload();

 private:
  ExecContext ctx_;
  std::vector<TensorRange> host_;
  std::vector<TensorView> device_;  // by range; none of host memory
  std::vector<std::shared_ptr<std::byte>> rooms_;
};

}  // namespace omni
