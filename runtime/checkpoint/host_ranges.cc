#include "runtime/checkpoint/host_ranges.h"

#include <utility>

namespace omni {

HostRanges::HostRanges(const ExecContext& ctx, std::vector<TensorRange> ranges)
    : ctx_(ctx), host_(std::move(ranges)) {
  if (IsHostMemory(ctx_.device.kind())) return;
  for (TensorRange& range : host_) {
    device_.push_back(range.data);
    rooms_.emplace_back(new std::byte[range.data.num_bytes()], std::default_delete<std::byte[]>());
    range.data = TensorView::Dense(rooms_.back().get(), range.data.dtype, DeviceKind::kCpu,
                                   range.data.shape());
  }
}

void HostRanges::Upload() {
  for (size_t i = 0; i < device_.size(); ++i) {
    omni::Upload(ctx_, host_[i].data.data, host_[i].data.num_bytes(), device_[i]);
  }
}

}  // namespace omni
