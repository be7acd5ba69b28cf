// A queue of work on one device, in order. Kernels and copies are put there by the device
// (device.h); here is what the host does between them. It reads results only after Synchronize
// (through HostRead, runtime/device/exec_context.h).
#pragma once

#include <functional>
#include <memory>

#include "absl/status/status.h"

namespace omni {

// A point in a stream's order that other streams can wait for.
class Event {
 public:
  virtual ~Event() = default;
  // Whether the stream has come there. Never blocks; from any thread.
  virtual bool is_reached() const = 0;
};

class Stream {
 public:
  virtual ~Stream() = default;

  // Runs `work`, which may not touch the device, after all that was enqueued before, which the
  // stream waits for. On `cpu` it runs before RunOnHost returns; on `cpu_async` later, on the
  // stream's thread, after a random delay; on a GPU on a thread of the driver's.
  virtual void RunOnHost(std::function<void()> work) = 0;

  virtual std::shared_ptr<Event> Record() = 0;  // shared: the recorder and each waiter
  virtual void Wait(const std::shared_ptr<Event>& event) = 0;  // enqueues the wait

  // Blocks the host until everything enqueued has run; returns the first error of a kernel.
  virtual absl::Status Synchronize() = 0;

  // The device's own handle (CUstream_st*), null on CPU devices.
  virtual void* native_handle() const { return nullptr; }
};

}  // namespace omni
