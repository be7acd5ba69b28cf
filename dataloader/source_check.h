// What can be known of a job's sources before it starts.
#pragma once

#include "absl/status/status.h"
#include "dataloader/sample_planner.h"

namespace omni::dataloader {

// Looks in each source that is drawn from for one sample that can be trained on, its media
// decoded: where data are sound, the first of each. InvalidArgument, naming source and first
// sample with its fault, if there is none; FailedPrecondition for a missing video plugin.
absl::Status CheckSources(const SamplePlanner& planner);

}  // namespace omni::dataloader
