// Streams over a full mesh of sockets, one per pair of ranks and group.
#pragma once

#include "runtime/comm/transport.h"

namespace omni::comm {

std::unique_ptr<TransportFactory> MakeTcpTransportFactory();

}  // namespace omni::comm
