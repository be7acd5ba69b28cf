// NCCL behind the plugin's C functions.
#pragma once

#include "runtime/device/cuda_device/nccl_api.h"

namespace omni::cuda {

const NcclApi* Nccl();

}  // namespace omni::cuda
