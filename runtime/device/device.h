// A device of one rank: its memory pool, its kernels, and how to make streams on it.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/device/kernel_table.h"
#include "runtime/device/page_pool.h"
#include "runtime/device/stream.h"
#include "runtime/device/thread_pool.h"

namespace omni {

struct DeviceOptions {
  DeviceKind kind = DeviceKind::kCpu;
  int64_t reserved_bytes = int64_t{4} << 30;  // address space on the CPU until touched
  int32_t num_threads = 1;
  int32_t index = 0;  // cuda: which of the GPUs it sees, modulo how many those are
  uint64_t delay_seed = 0;                  // cpu_async: seeds the random delays
  const KernelRegistry* kernels = nullptr;  // the CPU's; must outlive the device. A GPU has its own
};

class Device {
 public:
  static absl::StatusOr<std::unique_ptr<Device>> Create(const DeviceOptions& options);
  virtual ~Device() = default;

  virtual DeviceKind kind() const = 0;
  virtual PagePool& pool() = 0;
  virtual ThreadPool& threads() = 0;
  virtual const KernelRegistry& kernels() const = 0;
  virtual std::unique_ptr<Stream> NewStream() = 0;  // destroy it before the device

  // Whether kernels run, or are on the device's own queue, once they are launched; else the stream
  // runs them with RunOnHost.
  virtual bool launches_at_once() const = 0;
  // What kernels launched on `stream` see; scratch is the launcher's.
  virtual KernelContext ContextOn(Stream& stream) = 0;
  virtual std::string DescribeError(int32_t code) const;  // of a kernel's run

  // In stream order, host memory (copied before it returns) to a view of as many bytes.
  virtual void CopyIn(Stream& stream, const void* host, const TensorView& to) = 0;
  // Waits for the stream and copies a view, dense, to the host. Errors of Synchronize.
  virtual absl::Status CopyOut(Stream& stream, const TensorView& from, void* host) = 0;
  // Copies in stream order to and from host memory that stays as it is until the stream has done
  // so: of HostBuffer, or the stream may stop the host. Dense views.
  virtual void CopyInLater(Stream& stream, const void* host, const TensorView& to) = 0;
  virtual void CopyOutLater(Stream& stream, const TensorView& from, void* host) = 0;
  // Host memory for those: pinned on a GPU, used again once nobody holds it. From any thread.
  virtual std::shared_ptr<std::byte> HostBuffer(int64_t num_bytes) = 0;

  // The stream in whose order the pool's memory changes hands: the oldest alive; null where all
  // work is done when it is enqueued. Work on another stream that uses memory of the pool must
  // wait for this stream after the memory was allocated, and be waited for by it before the
  // memory is freed.
  virtual Stream* memory_stream() { return nullptr; }
};

}  // namespace omni
