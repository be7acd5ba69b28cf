// The CPU as a device: one pool, one thread pool, and streams that run everything at once.
#include "runtime/base/status.h"
#include "runtime/device/cpu/processor.h"
#include "runtime/device/cpu_async/cpu_async_device.h"
#include "runtime/device/cuda_device/cuda_device.h"
#include "runtime/device/host_device.h"

namespace omni {
namespace {

class DoneEvent : public Event {
 public:
  bool is_reached() const override { return true; }
};

// RunOnHost runs the work before it returns, so everything is always done.
class InlineStream : public Stream {
 public:
  void RunOnHost(std::function<void()> work) override { work(); }
  std::shared_ptr<Event> Record() override { return std::make_shared<DoneEvent>(); }
  void Wait(const std::shared_ptr<Event>&) override {}
  absl::Status Synchronize() override { return absl::OkStatus(); }
};

class CpuDevice : public HostDevice {
 public:
  CpuDevice(const DeviceOptions& options, std::unique_ptr<PagePool> pool)
      : HostDevice(options, std::move(pool)) {}

  DeviceKind kind() const override { return DeviceKind::kCpu; }
  bool launches_at_once() const override { return true; }
  std::unique_ptr<Stream> NewStream() override { return std::make_unique<InlineStream>(); }
};

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> Device::Create(const DeviceOptions& options) {
  OMNI_CHECK(options.kernels != nullptr);
  OMNI_RETURN_IF_ERROR(cpu::ChosenProcessor().status());
  if (options.kind == DeviceKind::kCpuAsync) return CreateCpuAsyncDevice(options);
  if (!IsHostMemory(options.kind)) return CreateCudaDevice(options);
  OMNI_ASSIGN_OR_RETURN(auto pool, PagePool::Create(options.reserved_bytes));
  return std::make_unique<CpuDevice>(options, std::move(pool));
}

}  // namespace omni
