#include "runtime/device/host_device.h"

#include <cstring>
#include <utility>
#include <vector>

#include "runtime/device/strided.h"

namespace omni {

std::string Device::DescribeError(int32_t code) const { return "code " + std::to_string(code); }

void HostDevice::CopyIn(Stream& stream, const void* host, const TensorView& to) {
  const auto* dense = static_cast<const std::byte*>(host);
  const auto copy = [](const std::byte* from, const TensorView& view) {
    ForEachRun(view, [&](std::byte* run, int64_t offset, int64_t num_bytes) {
      std::memcpy(run, from + offset, num_bytes);
    });
  };
  if (launches_at_once()) return copy(dense, to);
  stream.RunOnHost([copy, to, held = std::vector<std::byte>(dense, dense + to.num_bytes())] {
    copy(held.data(), to);
  });
}

absl::Status HostDevice::CopyOut(Stream& stream, const TensorView& from, void* host) {
  const absl::Status status = stream.Synchronize();
  if (!status.ok()) return status;
  ForEachRun(from, [&](const std::byte* run, int64_t offset, int64_t num_bytes) {
    std::memcpy(static_cast<std::byte*>(host) + offset, run, num_bytes);
  });
  return absl::OkStatus();
}

void HostDevice::CopyInLater(Stream& stream, const void* host, const TensorView& to) {
  OMNI_CHECK(to.is_dense());
  stream.RunOnHost([host, to] { std::memcpy(to.data, host, to.num_bytes()); });
}

void HostDevice::CopyOutLater(Stream& stream, const TensorView& from, void* host) {
  OMNI_CHECK(from.is_dense());
  stream.RunOnHost([host, from] { std::memcpy(host, from.data, from.num_bytes()); });
}

std::shared_ptr<std::byte> HostDevice::HostBuffer(int64_t num_bytes) {
  return {new std::byte[num_bytes], std::default_delete<std::byte[]>()};
}

}  // namespace omni
