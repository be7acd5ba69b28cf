#include "dataloader/source_check.h"

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dataloader/media_decoder.h"
#include "dataloader/microbatch_builder.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

// OK if the sample can be trained on, DataLoss with the reason if it is broken in itself.
absl::Status CheckSample(const SamplePlanner& planner, const MediaDecoder& decoder,
                         const SampleKey& key) {
  OMNI_ASSIGN_OR_RETURN(SamplePlanner::Result result, planner.Plan(key));
  if (result.plan == nullptr) {
    return absl::DataLossError(absl::StrCat(
        result.fault->sample_id, " is ", Name(result.fault->fault), ": ", result.fault->message));
  }
  return DecodeSample(planner, decoder, std::move(result.plan)).status();
}

}  // namespace

absl::Status CheckSources(const SamplePlanner& planner) {
  const DataConfig& config = planner.config();
  const MediaDecoder decoder(config, /*video=*/nullptr);
  for (size_t source = 0; source < config.sources.size(); ++source) {
    if (!config.DrawsFrom(source)) continue;
    const int64_t num_samples = planner.sources()[source].store->num_samples();
    absl::Status first = absl::DataLossError("it is empty");
    bool is_usable = false;
    for (int64_t index = 0; index < num_samples && !is_usable; ++index) {
      const absl::Status status =
          CheckSample(planner, decoder, {.source = static_cast<int32_t>(source), .index = index});
      if (!status.ok() && !IsSampleFault(status)) return status;
      if (index == 0) first = status;
      is_usable = status.ok();
    }
    if (is_usable) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "data source \"", config.sources[source].name, "\" (", config.sources[source].path,
        "): none of its ", num_samples, " samples can be trained on; ", first.message()));
  }
  return absl::OkStatus();
}

}  // namespace omni::dataloader
