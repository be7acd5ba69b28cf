// Microbatches out of planned samples: their tokens, and whole ones with media.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dataloader/batch.h"
#include "dataloader/media_decoder.h"
#include "dataloader/media_task.h"
#include "dataloader/sample_planner.h"

namespace omni::dataloader {

struct PlacedSample {
  std::shared_ptr<const SamplePlan> plan;  // shared with the planner's window
  int32_t lane = 0;
  int32_t sample = 0;  // which of the lane's
};
// Tokens and samples of a microbatch, lane by lane, without media.
Microbatch LayTokens(const std::vector<PlacedSample>& samples, const DataConfig& config);
// Takes the loss from a sample of it: how many tokens had one.
int64_t Blank(SampleRef* sample, Microbatch* microbatch);

// A microbatch that stands by itself, being filled. Token data are written by the constructor;
// each sample's media by Fill; Finish then takes the loss from samples that failed.
class MicrobatchBuilder {
 public:
  MicrobatchBuilder(const SamplePlanner& planner, const std::vector<PlacedSample>& samples);

  MicrobatchBuilder(const MicrobatchBuilder&) = delete;
  MicrobatchBuilder& operator=(const MicrobatchBuilder&) = delete;

  int64_t num_samples() const { return static_cast<int64_t>(tasks_.size()); }
  // Decodes the media of sample `index`. A sample's own fault blanks it; other errors are
  // returned.
  absl::Status Fill(int64_t index, const MediaDecoder& decoder, const FillOptions& options);
  Microbatch Finish(std::vector<FaultEvent>* faults);

 private:
  const SamplePlanner& planner_;
  Microbatch microbatch_;
  PackBuilder vision_, audio_;
  std::vector<MediaTask> tasks_;  // [samples]
};

// One sample as a microbatch of its own, not augmented. DataLoss, starting with its id, if a medium
// does not decode.
absl::StatusOr<Microbatch> DecodeSample(const SamplePlanner& planner, const MediaDecoder& decoder,
                                        std::shared_ptr<const SamplePlan> plan);

}  // namespace omni::dataloader
