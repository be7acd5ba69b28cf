// A worker process: joins the job, connects to its peers, trains, says goodbye.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace omni::trainer {

struct WorkerOptions {
  std::string coordinator;  // "host:port"
  int32_t rank = -1;        // wanted; -1: any
  int32_t local_rank = 0;   // among the workers of this machine: which of its GPUs
  // This machine, as peers (tcp) and Prometheus reach it; "": as the route to the coordinator says
  // (runtime/comm/route.h).
  std::string host;
  absl::Duration wait = absl::Seconds(30);  // for the coordinator to answer at all
  std::function<void(int32_t rank)> on_rank = {};  // once the coordinator has given it
};

struct WorkerResult {
  absl::Status status;
  bool is_heard = false;  // the coordinator knows the status, and reports what matters of it
};

// Blocks until the job is done. SIGTERM, SIGINT and SIGHUP ask it to stop after the running step.
WorkerResult RunWorker(const WorkerOptions& options);

}  // namespace omni::trainer
