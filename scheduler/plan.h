// The plan: how a job is laid over its workers, decided before the first step and written down.
//
// Each of the recipe's logical lanes belongs to one replica of the decoder, lane l to replica l mod
// D, so that another number of replicas means other owners but the same samples. All ranks of a
// replica read its lanes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace omni::scheduler {

struct PlanOptions {
  int32_t num_workers = 1;
  int32_t num_replicas = 0;     // 0: as many as workers
  int32_t sequence_ranks = 1;   // neighbouring ranks that share a replica's sequences
  std::string decoder_mesh;     // how the decoder lies over the workers, for people
  std::string decoder_weights;  // which of its weights and gradients they share out: "zero2"
  int32_t num_lanes = 1;
  std::string comm_engine = "shm";  // "tcp", "auto"
  std::string device = "cpu";
  int32_t threads_per_worker = 1;
  int64_t reserved_bytes = 0;
  double deadline_s = 30;
  std::string dtype = "fp32";
};

struct JobPlan {
  PlanOptions options;
  std::vector<std::vector<int32_t>> lanes_of_rank;  // [num_workers][*]: of its replica

  std::string ToYaml() const;
};

// InvalidArgument where the options can't hold together (no workers, no lanes).
absl::StatusOr<JobPlan> MakePlan(const PlanOptions& options);

}  // namespace omni::scheduler
