// A GPU as a device, through a plugin (cuda_api.h): `cuda`, and `cuda_emulated`, which runs the
// same plugin's sources on the CPU, much slower, for tests and for a look at what would run.
//
// Kernels and copies are put on the device's streams at once; all memory is one region reserved at
// the start. On the emulated GPU memory handed out is NaN until written.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "runtime/device/cuda_device/nccl_api.h"
#include "runtime/device/device.h"

namespace omni {

// FailedPrecondition: no plugin, driver or GPU, in one sentence. ResourceExhausted: the GPU has
// less memory than is to be reserved.
absl::StatusOr<std::unique_ptr<Device>> CreateCudaDevice(const DeviceOptions& options);
// Null where the device has none.
const NcclApi* NcclOf(Device& device);

}  // namespace omni
