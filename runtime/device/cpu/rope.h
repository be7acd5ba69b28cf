#pragma once

#include "runtime/device/kernel_table.h"

namespace omni::cpu {

void RegisterRopeKernels(KernelRegistry& registry);

}  // namespace omni::cpu
