// Where a process serves its metrics, and the name under which Prometheus finds it.
//
//   observe.metrics_host   own host   listens on   told to the coordinator
//   ""                     node1      node1        node1
//   0.0.0.0                node1      0.0.0.0      node1
//   0.0.0.0                127.0.0.1  0.0.0.0      this machine's name
//   10.0.0.7               node1      10.0.0.7     10.0.0.7
//   ""                     ""         0.0.0.0      this machine's name
//
// So the default follows the addresses that the processes of a job reach each other by: a job on
// one machine stays on the loopback, and workers started with --host serve where that says.
#pragma once

#include <string>

namespace omni::trainer {

struct MetricsHost {
  std::string listen;
  std::string reach;
};

// `wanted` is the recipe's observe.metrics_host. `own` is this process as the others reach it: a
// worker's --host, the host in the coordinator's --address. IPv6 with or without brackets; both
// results have them, so that ":port" may follow.
MetricsHost MetricsHostFor(const std::string& wanted, const std::string& own);

}  // namespace omni::trainer
