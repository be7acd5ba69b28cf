// A worker process: joins the job, connects to its peers, trains, says goodbye.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace omni::trainer {

struct WorkerOptions {
  std::string coordinator;                  // "host:port"
  int32_t rank = -1;                        // wanted; -1: any
  std::string host = "127.0.0.1";           // this machine, as peers (tcp) and Prometheus reach it
  absl::Duration wait = absl::Seconds(30);  // for the coordinator to answer at all
};

struct WorkerResult {
  absl::Status status;
  bool is_heard = false;  // the coordinator knows the status, and reports what matters of it
};

// Blocks until the job is done. SIGTERM and SIGINT ask the job to stop after the running step.
WorkerResult RunWorker(const WorkerOptions& options);

}  // namespace omni::trainer
