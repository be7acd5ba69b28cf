// Ranks whose tensors lie on devices the engines can't reach: each call copies its buffers out to
// host memory, lets an engine of the CPU (shm, tcp) work there, and copies what it made back. For
// several ranks on one GPU, where NCCL refuses, for machines without NCCL, and as an oracle.
#pragma once

#include <memory>

#include "runtime/comm/communicator.h"
#include "runtime/device/device.h"

namespace omni {

// `inner` and `device` outlive it. Views in host memory go straight to `inner`; others are copied
// in the order of the input stream, which must be set. What `inner` promises holds.
std::unique_ptr<Communicator> StageOnHost(Communicator* inner, Device* device);
// The engine under a staged communicator; any other itself.
Communicator& Unstaged(Communicator& comm);

}  // namespace omni
