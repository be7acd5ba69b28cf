// The CPU as a device: one pool, one thread pool, and streams that run everything at once.
#include "runtime/base/status.h"
#include "runtime/device/cpu/processor.h"
#include "runtime/device/cpu_async/cpu_async_device.h"
#include "runtime/device/device.h"

namespace omni {
namespace {

class DoneEvent : public Event {};

// Enqueue runs the work before it returns, so everything is always done.
class InlineStream : public Stream {
 public:
  void Enqueue(std::function<void()> work) override { work(); }
  std::shared_ptr<Event> Record() override { return std::make_shared<DoneEvent>(); }
  void Wait(const std::shared_ptr<Event>&) override {}
  absl::Status Synchronize() override { return absl::OkStatus(); }
};

class CpuDevice : public Device {
 public:
  CpuDevice(const DeviceOptions& options, std::unique_ptr<PagePool> pool)
      : kernels_(*options.kernels), pool_(std::move(pool)), threads_(options.num_threads) {}

  DeviceKind kind() const override { return DeviceKind::kCpu; }
  PagePool& pool() override { return *pool_; }
  ThreadPool& threads() override { return threads_; }
  const KernelRegistry& kernels() const override { return kernels_; }
  std::unique_ptr<Stream> NewStream() override { return std::make_unique<InlineStream>(); }

 private:
  const KernelRegistry& kernels_;
  std::unique_ptr<PagePool> pool_;
  ThreadPool threads_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Device>> Device::Create(const DeviceOptions& options) {
  OMNI_CHECK(options.kernels != nullptr);
  OMNI_RETURN_IF_ERROR(cpu::ChosenProcessor().status());
  if (options.kind == DeviceKind::kCpuAsync) return CreateCpuAsyncDevice(options);
  if (options.kind != DeviceKind::kCpu) {
    return absl::UnimplementedError("this build knows the devices cpu and cpu_async only");
  }
  OMNI_ASSIGN_OR_RETURN(auto pool, PagePool::Create(options.reserved_bytes));
  return std::make_unique<CpuDevice>(options, std::move(pool));
}

}  // namespace omni
