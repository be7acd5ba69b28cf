#include "tools/one_sample.h"

#include "dataloader/media_decoder.h"
#include "dataloader/microbatch_builder.h"
#include "runtime/base/status.h"

namespace omni::tools {
absl::StatusOr<OneSample> LoadOneSample(const dataloader::SamplePlanner& planner, int64_t index) {
  const dataloader::OpenedSource& source = planner.sources()[0];
  const int64_t num_samples = source.store->num_samples();
  if (index < 0 || index >= num_samples) {
    return absl::NotFoundError(absl::StrCat("source \"", source.name, "\" has samples 0 to ",
                                            num_samples - 1, ", not ", index));
  }
  OMNI_ASSIGN_OR_RETURN(auto planned, planner.Plan({.index = index}));
  if (planned.plan == nullptr) {
    return absl::DataLossError(absl::StrCat(planned.fault->sample_id, " would be left out as ",
                                            Name(planned.fault->fault), ": ",
                                            planned.fault->message));
  }
  OneSample sample{.plan = std::move(planned.plan), .microbatch = {}};
  const dataloader::MediaDecoder decoder(planner.config(), /*video=*/nullptr);
  OMNI_ASSIGN_OR_RETURN(sample.microbatch, dataloader::DecodeSample(planner, decoder, sample.plan));
  return sample;
}

}  // namespace omni::tools
