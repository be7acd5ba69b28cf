// The plan: how a job is laid over its workers, decided before the first step and written down.
//
// For now a plan is data parallel: each of the recipe's logical lanes belongs to one worker, lane
// l to rank l mod W, so that another number of workers means other owners but the same samples.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace omni::scheduler {

struct PlanOptions {
  int32_t num_workers = 1;
  int32_t num_lanes = 1;
  std::string comm_engine = "shm";
  std::string device = "cpu";
  int32_t threads_per_worker = 1;
  int64_t reserved_bytes = 0;
  double deadline_s = 30;
  std::string dtype = "fp32";
};

struct JobPlan {
  PlanOptions options;
  std::vector<std::vector<int32_t>> lanes_of_rank;  // [num_workers][*]

  std::string ToYaml() const;
};

// InvalidArgument where the options can't hold together (no workers, no lanes).
absl::StatusOr<JobPlan> MakePlan(const PlanOptions& options);

}  // namespace omni::scheduler
