// What the devices whose memory is the host's have in common (cpu, cpu_async).
#pragma once

#include <memory>

#include "runtime/device/device.h"

namespace omni {

class HostDevice : public Device {
 public:
  PagePool& pool() final { return *pool_; }
  ThreadPool& threads() final { return threads_; }
  const KernelRegistry& kernels() const final { return kernels_; }
  KernelContext ContextOn(Stream&) final { return {.pool = &threads_}; }
  void CopyIn(Stream& stream, const void* host, const TensorView& to) final;
  absl::Status CopyOut(Stream& stream, const TensorView& from, void* host) final;
  void CopyInLater(Stream& stream, const void* host, const TensorView& to) final;
  void CopyOutLater(Stream& stream, const TensorView& from, void* host) final;
  std::shared_ptr<std::byte> HostBuffer(int64_t num_bytes) final;

 protected:
  HostDevice(const DeviceOptions& options, std::unique_ptr<PagePool> pool)
      : kernels_(*options.kernels), pool_(std::move(pool)), threads_(options.num_threads) {}

 private:
  const KernelRegistry& kernels_;
  std::unique_ptr<PagePool> pool_;
  ThreadPool threads_;
};

}  // namespace omni
