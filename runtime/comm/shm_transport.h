// Streams through memory shared by the ranks of one host, threads and processes alike.
//
// The lowest rank of a group makes an anonymous file (memfd), the others get its descriptor
// over their Unix links: there is no name, so nothing can be left behind. It holds a ring of
// bytes from each rank to each other, and per rank a bell: a word that peers increase after
// they have written to it or made room, and on which it sleeps (futex).
#pragma once

#include "runtime/comm/transport.h"

namespace omni::comm {

std::unique_ptr<TransportFactory> MakeShmTransportFactory();

}  // namespace omni::comm
