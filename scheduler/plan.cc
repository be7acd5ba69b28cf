#include "scheduler/plan.h"

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status.h"

namespace omni::scheduler {

absl::StatusOr<JobPlan> MakePlan(const PlanOptions& options) {
  if (options.num_workers < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("parallel.workers is ", options.num_workers, ", expected at least 1"));
  }
  if (options.num_lanes < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("data.lanes is ", options.num_lanes, ", expected at least 1"));
  }
  JobPlan plan{.options = options, .lanes_of_rank = {}};
  plan.lanes_of_rank.resize(options.num_workers);
  const int32_t replicas = options.num_replicas == 0 ? options.num_workers : options.num_replicas;
  for (int32_t rank = 0; rank < options.num_workers; ++rank) {
    const int32_t replica = rank / options.sequence_ranks % replicas;
    for (int32_t lane = replica; lane < options.num_lanes; lane += replicas) {
      plan.lanes_of_rank[rank].push_back(lane);
    }
  }
  return plan;
}

std::string JobPlan::ToYaml() const {
  std::string mesh;
  if (!options.decoder_mesh.empty())
    absl::StrAppend(&mesh, "decoder: ", options.decoder_mesh, "\n");
  if (!options.decoder_weights.empty()) {
    absl::StrAppend(&mesh, "decoder_weights: ", options.decoder_weights, "\n");
  }
  std::string yaml =
      mesh + absl::StrFormat(
                 "workers: %d\nlanes: %d\ncomm: %s\ndevice: %s\nthreads_per_worker: %d\n"
                 "reserved_gib: %.2f\ndeadline_s: %g\ndtype: %s\nlanes_of_rank:\n",
                 options.num_workers, options.num_lanes, options.comm_engine, options.device,
                 options.threads_per_worker,
                 static_cast<double>(options.reserved_bytes) / (1 << 30), options.deadline_s,
                 options.dtype);
  for (const auto& lanes : lanes_of_rank) {
    absl::StrAppend(&yaml, "  - [", absl::StrJoin(lanes, ", "), "]\n");
  }
  return yaml;
}

}  // namespace omni::scheduler
