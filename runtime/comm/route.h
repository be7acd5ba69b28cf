// How this process is reached by others: by the address that the way to the coordinator leaves
// from.
//
//   --coordinator     its route      --host     listens on   tells the others
//   10.0.0.1          10.0.0.2       -          10.0.0.2     10.0.0.2
//   10.0.0.1          10.0.0.2       10.9.0.2   10.9.0.2     10.9.0.2       another network
//   10.0.0.1          10.0.0.2       node2      as node2     its address; if node2 is 127.0.1.1
//                                               here, as without --host, with a note
//   10.0.0.1          10.0.0.2       127.0.0.1  an error that names both
//   127.0.0.1         127.0.0.1      -          127.0.0.1    127.0.0.1      one machine
//   node1, 127.0.1.1  127.0.0.1      -          everywhere   127.0.0.1; the coordinator puts its
//   on node1                                                 own address in its place for others
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/base/address.h"

namespace omni::comm {

struct Route {
  SocketAddress coordinator;  // as this process reached it, of its several addresses
  SocketAddress local;        // where that connection leaves from
};
// Connects to `coordinator` ("host:port"), which must answer before the deadline, and hangs up.
// InvalidArgument for what is no address; Unavailable names it and how long was tried.
absl::StatusOr<Route> RouteTo(const std::string& coordinator, absl::Time deadline);

struct OwnAddress {
  std::string listen;     // host to listen on; "": everywhere
  std::string advertise;  // host in the address that others are told
  std::string metrics;    // host that metrics are served on and told with; "": everywhere
  std::string note;       // for the person, where --host was not taken as it stands; else ""
};
// `host` is --host, "" without one. InvalidArgument if it names the loopback while the coordinator
// is elsewhere, or can't be resolved.
absl::StatusOr<OwnAddress> ChooseOwnAddress(const Route& route, const std::string& coordinator,
                                            const std::string& host,
                                            const Resolver& resolve = Resolve);

}  // namespace omni::comm
