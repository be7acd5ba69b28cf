#include "dataloader/step_planner.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dataloader/packing.h"
#include "runtime/base/check.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"

namespace omni::dataloader {

struct StepPlanner::Lane {
  explicit Lane(LaneOrder::Options options) : order(std::move(options)) {}

  const LaneOrder order;
  bool is_open = false;
  std::vector<std::vector<std::shared_ptr<const SamplePlan>>> sequences;  // in order of use
  std::vector<int64_t> cursors_after;
  std::vector<FaultEvent> faults;  // of the window
  int64_t draws_without_sample = 0;
};

int64_t StepPlan::loss_tokens() const {
  int64_t sum = 0;
  for (const auto& lane : lanes) {
    for (const auto& sample : lane) sum += sample->loss_tokens;
  }
  return sum;
}

int64_t StepPlan::num_tokens() const {
  int64_t sum = 0;
  for (const auto& lane : lanes) {
    for (const auto& sample : lane) sum += sample->num_tokens();
  }
  return sum;
}

std::string DataFingerprint(const DataConfig& config, const std::vector<OpenedSource>& sources) {
  std::string text =
      absl::StrCat("seed ", config.seed, ", ", config.lanes, " lanes, window ", config.window,
                   ", sequence_length ", config.sequence_length, ", overlong ",
                   config.overlong == Overlong::kDrop ? "drop" : "cut");
  for (const OpenedSource& source : sources) {
    absl::StrAppend(&text, ", source ", source.name, " of ", source.store->num_samples(),
                    " samples");
  }
  return text;
}

StepPlanner::StepPlanner(std::shared_ptr<const SamplePlanner> samples, LoaderState start)
    : samples_(std::move(samples)), state_(std::move(start)) {
  const DataConfig& config = samples_->config();
  LaneOrder::Options options{
      .seed = config.seed, .num_lanes = config.lanes, .window = config.window};
  for (const OpenedSource& source : samples_->sources()) {
    options.source_streams.push_back(StreamOf(source.name));
    options.source_sizes.push_back(source.store->num_samples());
  }
  for (options.lane = 0; options.lane < config.lanes; ++options.lane) {
    lanes_.push_back(std::make_unique<Lane>(options));
  }
}

StepPlanner::~StepPlanner() = default;

absl::StatusOr<std::unique_ptr<StepPlanner>> StepPlanner::Create(
    std::shared_ptr<const SamplePlanner> samples, LoaderState start) {
  const DataConfig& config = samples->config();
  const std::string fingerprint = DataFingerprint(config, samples->sources());
  for (size_t i = 0; i < samples->sources().size(); ++i) {
    if (samples->sources()[i].store->num_samples() == 0 && config.DrawsFrom(i)) {
      return absl::InvalidArgumentError(absl::StrCat("data source \"", config.sources[i].name,
                                                     "\" (", config.sources[i].path,
                                                     ") has no samples"));
    }
  }
  if (start.lanes.empty()) {
    start = {.fingerprint = fingerprint};
    start.lanes.resize(config.lanes);
    for (LaneState& lane : start.lanes) lane.cursors.resize(samples->sources().size());
  } else if (start.fingerprint != fingerprint) {
    return absl::FailedPreconditionError(
        absl::StrCat("the data are not those the checkpoint was trained on, so it can't go on "
                     "where it stopped: it has ",
                     start.fingerprint, "; the recipe has ", fingerprint));
  }
  bool fits = start.lanes.size() == static_cast<size_t>(config.lanes);
  for (const LaneState& lane : start.lanes) {
    fits &= lane.cursors.size() == samples->sources().size();
  }
  if (!fits) return absl::DataLossError("data state has other lanes or sources than it says");
  return std::unique_ptr<StepPlanner>(new StepPlanner(std::move(samples), std::move(start)));
}

absl::Status StepPlanner::OpenWindow(Lane& lane, LaneState& state) {
  const std::vector<double> weights = samples_->config().WeightsAt(state.window_step);
  const int64_t sequence_length = samples_->config().SequenceLengthAt(state.window_step);
  const std::vector<SampleKey> draws = lane.order.Draw(state, weights, &lane.cursors_after);
  std::vector<std::shared_ptr<const SamplePlan>> plans;
  std::vector<int64_t> tokens;
  lane.faults.clear();
  for (const SampleKey& key : draws) {
    OMNI_ASSIGN_OR_RETURN(SamplePlanner::Result result, samples_->Plan(key, sequence_length));
    if (result.fault != nullptr) lane.faults.push_back(std::move(*result.fault));
    if (result.plan == nullptr) continue;
    tokens.push_back(result.plan->num_tokens());
    plans.push_back(std::move(result.plan));
  }
  const auto packed = PackSequences(tokens, sequence_length);
  lane.sequences.assign(packed.size(), {});
  const auto order = lane.order.SequenceOrder(state.window, static_cast<int32_t>(packed.size()));
  for (size_t i = 0; i < packed.size(); ++i) {
    for (const int32_t plan : packed[order[i]]) lane.sequences[i].push_back(plans[plan]);
  }
  lane.is_open = true;
  lane.draws_without_sample =
      packed.empty() ? lane.draws_without_sample + static_cast<int64_t>(draws.size()) : 0;
  return absl::OkStatus();
}

// Moves the lane to its next sequence to use, opening windows as needed.
absl::Status StepPlanner::Advance(Lane& lane, LaneState& state, std::vector<FaultEvent>* faults) {
  int64_t epoch = 0;
  for (int32_t i = 0; i < static_cast<int32_t>(samples_->sources().size()); ++i) {
    epoch += lane.order.share_size(i);
  }
  while (true) {
    if (!lane.is_open) {
      const bool is_resumed = state.position > 0;  // its faults were reported before
      OMNI_RETURN_IF_ERROR(OpenWindow(lane, state));
      if (!is_resumed) {
        std::move(lane.faults.begin(), lane.faults.end(), std::back_inserter(*faults));
      }
      if (state.position > static_cast<int64_t>(lane.sequences.size())) {
        return absl::FailedPreconditionError(
            absl::StrCat("the data have changed since the checkpoint: a window of which ",
                         state.position, " sequences were trained on now packs into ",
                         lane.sequences.size(), "; restore the data, or start a new run"));
      }
    }
    if (state.position < static_cast<int64_t>(lane.sequences.size())) return absl::OkStatus();
    if (lane.draws_without_sample > 2 * epoch + samples_->config().window) {
      return absl::DataLossError(absl::StrCat("no usable sample in ", lane.draws_without_sample,
                                              " draws; the last was ", faults->back().sample_id,
                                              ": ", faults->back().message));
    }
    state = {.cursors = lane.cursors_after,
             .window = state.window + 1,
             .position = 0,
             .window_step = state_.step};
    lane.is_open = false;
  }
}

absl::StatusOr<StepPlan> StepPlanner::Next() {
  StepPlan plan;
  plan.step = state_.step;
  plan.lanes.resize(lanes_.size());
  plan.faults.resize(lanes_.size());
  // Lanes that wait have nothing in this step.
  const auto num_active = static_cast<size_t>(samples_->config().LanesAt(state_.step));
  for (size_t i = 0; i < num_active; ++i) {
    LaneState& state = state_.lanes[i];
    OMNI_RETURN_IF_ERROR(Advance(*lanes_[i], state, &plan.faults[i]));
    plan.lanes[i] = lanes_[i]->sequences[state.position];
    ++state.position;
  }
  ++state_.step;
  plan.state_after = state_;
  return plan;
}

}  // namespace omni::dataloader
