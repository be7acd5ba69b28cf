// Tensors of GPUs over NCCL, one GPU a rank.
//
// Each communicator has a stream of its own: a call waits there for all that was on the input
// stream when it was made, and whoever waits for the call waits for its event. So calls overlap
// with compute and with each other. Counts that differ between ranks are broadcasts and reductions
// of each rank's part in one group; equal ones NCCL's own collectives.
//
// A `control` communicator of the same ranks, over sockets or shared memory, carries what is not
// between GPUs: views in host memory, barriers, activities, and who is gone. One watchdog looks at
// it and at NCCL's own errors. At the first failure, or when a call has not ended in `stall`, it
// aborts every communicator of the world, which ends what is on their streams; the reason is that
// of `control`, on all ranks.
//
// Sums are in NCCL's order, which is the same in a job of the same layout on the same machines;
// bf16 is rounded at each hop, where the engines of the CPU round once.
#pragma once

#include <memory>

#include "runtime/comm/communicator.h"
#include "runtime/device/device.h"

namespace omni {

struct NcclOptions {
  // How long a call may be under way before its ranks are given up.
  absl::Duration stall = absl::Minutes(10);
  // How long all ranks may take to form a communicator.
  absl::Duration connect = absl::Minutes(5);
};

// Collective over `control`, which outlives it, as `device` does. FailedPrecondition where the
// device's plugin has no NCCL, or NCCL refuses (two ranks on one GPU).
absl::StatusOr<std::unique_ptr<Communicator>> ConnectNccl(Communicator* control, Device* device,
                                                          const NcclOptions& options);

}  // namespace omni
