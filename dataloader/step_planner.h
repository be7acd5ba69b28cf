// What each step consists of: the next packed sequence of every lane, from metadata alone.
//
// Every rank plans all lanes: the plans agree without communication, and so do the numbers of
// loss tokens. Cost per step is that of reading and tokenising the text of the global batch.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "dataloader/lane.h"
#include "dataloader/sample_planner.h"

namespace omni::dataloader {

// A few integers per lane; what a checkpoint keeps of the data.
struct LoaderState {
  int64_t step = 0;  // steps consumed
  std::vector<LaneState> lanes;
  // What the integers mean: a state fits only the same seed, lanes, window, sequence length,
  // overlong rule and sources (name and size).
  std::string fingerprint;

  std::string ToJson() const;
  static absl::StatusOr<LoaderState> FromJson(const std::string& json);  // DataLoss
  bool operator==(const LoaderState&) const = default;
};

struct StepPlan {
  int64_t step = 0;
  // [lanes]: the samples of the lane's sequence, end to end. Shared: a window's plans are held
  // by the lane until its last sequence is consumed, and by the steps being prepared.
  std::vector<std::vector<std::shared_ptr<const SamplePlan>>> lanes;
  std::vector<std::vector<FaultEvent>> faults;  // [lanes]: of the window this step opened
  LoaderState state_after;

  int64_t loss_tokens() const;
  int64_t num_tokens() const;
};

class StepPlanner {
 public:
  // `start`: a state with no lanes starts from the beginning. FailedPrecondition, naming what
  // differs, if the state was made with other data; DataLoss if it contradicts itself.
  // InvalidArgument for a source with weight and without samples.
  static absl::StatusOr<std::unique_ptr<StepPlanner>> Create(
      std::shared_ptr<const SamplePlanner> samples, LoaderState start);
  ~StepPlanner();

  // FailedPrecondition if the sources' content has visibly changed since the state was made.
  // DataLoss if a lane finds no usable sample in a whole epoch of its sources, naming one.
  absl::StatusOr<StepPlan> Next();
  const LoaderState& state() const { return state_; }

 private:
  struct Lane;
  StepPlanner(std::shared_ptr<const SamplePlanner> samples, LoaderState start);
  absl::Status OpenWindow(Lane& lane, LaneState& state);
  absl::Status Advance(Lane& lane, LaneState& state, std::vector<FaultEvent>* faults);

  const std::shared_ptr<const SamplePlanner> samples_;
  LoaderState state_;
  std::vector<std::unique_ptr<Lane>> lanes_;
};

// "seed 1, 4 lanes, window 64, ...": LoaderState::fingerprint.
std::string DataFingerprint(const DataConfig& config, const std::vector<OpenedSource>& sources);

}  // namespace omni::dataloader
