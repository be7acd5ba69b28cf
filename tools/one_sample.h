// One sample of an opened source, as the model gets it: what is looked at and asked about.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "dataloader/batch.h"
#include "dataloader/sample_planner.h"

namespace omni::tools {

struct OneSample {
  std::shared_ptr<const dataloader::SamplePlan> plan;  // shared with the builder of packs
  dataloader::Microbatch microbatch;                   // of this sample alone
};

// Sample `index` of the planner's first source, its media decoded. NotFound beyond the end;
// DataLoss, naming the sample, if training would leave it out or blank it.
absl::StatusOr<OneSample> LoadOneSample(const dataloader::SamplePlanner& planner, int64_t index);

}  // namespace omni::tools
