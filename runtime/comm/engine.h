// The communicator all engines share: a queue of calls in order, run by a thread of its own or
// by whoever waits, over the engine's transport; and everything about failure.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/comm/communicator.h"
#include "runtime/comm/options.h"
#include "runtime/comm/peer_links.h"
#include "runtime/comm/transport.h"

namespace omni::comm {

// All ranks of the job, over links that are up. The links are shared by the groups split off.
absl::StatusOr<std::unique_ptr<Communicator>> MakeWorld(std::shared_ptr<PeerLinks> links,
                                                        std::shared_ptr<TransportFactory> factory,
                                                        const CommOptions& options);

}  // namespace omni::comm
