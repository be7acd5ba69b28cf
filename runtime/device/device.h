// A device of one rank: its memory pool, its kernels, and how to make streams on it.
#pragma once

#include <memory>

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
  uint64_t delay_seed = 0;                  // cpu_async: seeds the random delays
  const KernelRegistry* kernels = nullptr;  // must outlive the device
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

  // The stream in whose order the pool's memory changes hands: the oldest alive; null where all
  // work is done when it is enqueued. Work on another stream that uses memory of the pool must
  // wait for this stream after the memory was allocated, and be waited for by it before the
  // memory is freed.
  virtual Stream* memory_stream() { return nullptr; }
};

}  // namespace omni
