// A test device that runs the CPU's kernels the way a GPU would: later, on stream threads.
//
// Before each piece of work a stream pauses for a random while (seeded), so an op that forgets
// to order itself behind another stream, or a host that reads without waiting, fails here and not
// only on a GPU. Freed pages are overwritten with 0xFF bytes (NaN in every float type, -1 in the
// integers) in the order of the device's memory stream, so a use after free shows in the numbers
// and, under ThreadSanitizer, as a race.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "runtime/device/device.h"

namespace omni {

absl::StatusOr<std::unique_ptr<Device>> CreateCpuAsyncDevice(const DeviceOptions& options);

}  // namespace omni
