// What each step consists of: the next packed sequence of every lane, from metadata alone.
//
// Every rank plans all lanes: the plans agree without communication, and so do the numbers of
// loss tokens. Cost per step is that of reading and tokenising the text of the global batch. Tokens
// are kept of the lanes alone that the rank reads; of all others their number, and their media.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "dataloader/lane.h"
#include "dataloader/sample_planner.h"

namespace omni::dataloader {

// What a source was when a state was made.
struct SourceState {
  std::string name;
  std::string path;
  int64_t samples = 0;
  int64_t bytes = 0;     // of its files; 0: not known
  double video_fps = 0;  // OpenedSource::video_fps

  bool operator==(const SourceState&) const = default;
};

// A few integers per lane; what a checkpoint keeps of the data.
struct LoaderState {
  int64_t step = 0;  // steps consumed
  std::vector<LaneState> lanes;
  // What the integers mean: they fit only the same seed, number of lanes and sources (names and
  // samples). CarryOver (carry_over.h) makes a state fit other data.
  uint64_t seed = 0;
  std::vector<SourceState> sources;  // in the order of the cursors, in which a window draws
  // How samples become tokens (ReadingOf): a window that is open fits no other. "": not known.
  std::string reading;

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
  // `start`: a state with no lanes starts from the beginning. The recipe may have its sources in
  // another order. FailedPrecondition, naming what differs, if the state was made with other data
  // and has not been carried over; DataLoss if it contradicts itself. InvalidArgument for a source
  // with weight and without samples. `reads`: whose tokens are kept; null: all lanes'.
  static absl::StatusOr<std::unique_ptr<StepPlanner>> Create(
      std::shared_ptr<const SamplePlanner> samples, LoaderState start,
      std::function<bool(int32_t lane)> reads = nullptr);
  ~StepPlanner();

  // FailedPrecondition if the sources' content has visibly changed since the state was made.
  // DataLoss if a lane finds no usable sample in a whole epoch of its sources, naming one.
  absl::StatusOr<StepPlan> Next();
  const LoaderState& state() const { return state_; }
  // Of the open windows' plans, about. From any thread.
  int64_t held_bytes() const { return held_bytes_.load(std::memory_order_relaxed); }
  // The most of it, with a medium a sample: windows full of samples as long as a sequence where
  // tokens are kept.
  int64_t max_held_bytes() const;

 private:
  struct Lane;
  StepPlanner(std::shared_ptr<const SamplePlanner> samples, LoaderState start,
              const std::function<bool(int32_t lane)>& reads);
  absl::Status OpenWindow(Lane& lane, LaneState& state);
  absl::Status Advance(Lane& lane, LaneState& state, std::vector<FaultEvent>* faults);

  const std::shared_ptr<const SamplePlanner> samples_;
  LoaderState state_;
  std::vector<int32_t> order_;  // of state_.sources: which of the planner's
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::atomic<int64_t> held_bytes_{0};
};

// The beginning.
LoaderState StartState(const SamplePlanner& samples);
// Of all that decides how many tokens a sample has.
std::string ReadingOf(const DataConfig& config, const Tokenizer& tokenizer);
// "seed 1, 4 lanes, source image of 200 samples": what a state's integers mean.
std::string DataFingerprint(const LoaderState& state);

}  // namespace omni::dataloader
