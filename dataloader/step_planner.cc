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

namespace {

size_t PlaceOf(const std::vector<SourceState>& sources, const std::string& name) {
  size_t i = 0;
  while (i < sources.size() && sources[i].name != name) ++i;
  return i;
}

}  // namespace

struct StepPlanner::Lane {
  Lane(LaneOrder::Options options, bool keeps) : order(std::move(options)), keeps_text(keeps) {}

  const LaneOrder order;
  const bool keeps_text;
  bool is_open = false;
  std::vector<std::vector<std::shared_ptr<const SamplePlan>>> sequences;  // in order of use
  std::vector<int64_t> cursors_after;
  std::vector<FaultEvent> faults;  // of the window
  int64_t draws_without_sample = 0;
  int64_t held_bytes = 0;  // of the window's plans
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

StepPlanner::StepPlanner(std::shared_ptr<const SamplePlanner> samples, LoaderState start,
                         const std::function<bool(int32_t lane)>& reads)
    : samples_(std::move(samples)), state_(std::move(start)) {
  const DataConfig& config = samples_->config();
  LaneOrder::Options options{
      .seed = config.seed, .num_lanes = config.lanes, .window = config.window};
  for (const SourceState& source : state_.sources) {
    options.source_streams.push_back(StreamOf(source.name));
    options.source_sizes.push_back(source.samples);
    for (size_t i = 0; i < samples_->sources().size(); ++i) {
      if (samples_->sources()[i].name == source.name) order_.push_back(static_cast<int32_t>(i));
    }
  }
  for (options.lane = 0; options.lane < config.lanes; ++options.lane) {
    lanes_.push_back(std::make_unique<Lane>(options, reads == nullptr || reads(options.lane)));
  }
}

StepPlanner::~StepPlanner() = default;

absl::StatusOr<std::unique_ptr<StepPlanner>> StepPlanner::Create(
    std::shared_ptr<const SamplePlanner> samples, LoaderState start,
    std::function<bool(int32_t lane)> reads) {
  const DataConfig& config = samples->config();
  for (size_t i = 0; i < samples->sources().size(); ++i) {
    if (samples->sources()[i].store->num_samples() == 0 && config.DrawsFrom(i)) {
      return absl::InvalidArgumentError(absl::StrCat("data source \"", config.sources[i].name,
                                                     "\" (", config.sources[i].path,
                                                     ") has no samples"));
    }
  }
  if (start.lanes.empty()) start = StartState(*samples);
  for (const LaneState& lane : start.lanes) {
    if (lane.cursors.size() == start.sources.size() &&
        (lane.weights.empty() || lane.weights.size() == start.sources.size())) {
      continue;
    }
    return absl::DataLossError("data state has a lane of other sources than it says");
  }
  LoaderState wanted = StartState(*samples);
  // Sources in the state's order, where it has them.
  std::stable_sort(wanted.sources.begin(), wanted.sources.end(),
                   [&](const SourceState& a, const SourceState& b) {
                     return PlaceOf(start.sources, a.name) < PlaceOf(start.sources, b.name);
                   });
  if (const std::string found = DataFingerprint(start), expected = DataFingerprint(wanted);
      found != expected) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the data are not those of the data state: it has ", found, "; the recipe has ", expected));
  }
  return std::unique_ptr<StepPlanner>(new StepPlanner(std::move(samples), std::move(start), reads));
}

int64_t StepPlanner::max_held_bytes() const {
  constexpr int64_t kPlanBytes = sizeof(SamplePlan) + sizeof(MediaSpan) + sizeof(MediaInfo) + 256;
  constexpr int64_t kTokenBytes = sizeof(int32_t) + sizeof(uint8_t);
  const DataConfig& config = samples_->config();
  int64_t tokens = config.sequence_length, bytes = 0;
  for (const PhaseConfig& phase : config.phases) tokens = std::max(tokens, phase.sequence_length);
  for (const auto& lane : lanes_) {
    bytes += config.window * (kPlanBytes + (lane->keeps_text ? kTokenBytes * tokens : 0));
  }
  return bytes;
}

absl::Status StepPlanner::OpenWindow(Lane& lane, LaneState& state) {
  if (state.weights.empty()) {
    const std::vector<double> weights = samples_->config().WeightsAt(state.window_step);
    for (const int32_t source : order_) state.weights.push_back(weights[source]);
    state.sequence_length = samples_->config().SequenceLengthAt(state.window_step);
    state.draws = samples_->config().window;
  }
  const int64_t sequence_length = state.sequence_length;
  std::vector<SampleKey> draws =
      lane.order.Draw(state, state.weights, &lane.cursors_after, state.draws);
  for (SampleKey& key : draws) key.source = order_[key.source];
  std::vector<std::shared_ptr<const SamplePlan>> plans;
  std::vector<int64_t> tokens;
  lane.faults.clear();
  int64_t held_bytes = 0;
  for (const SampleKey& key : draws) {
    OMNI_ASSIGN_OR_RETURN(SamplePlanner::Result result, samples_->Plan(key, sequence_length));
    if (result.fault != nullptr) lane.faults.push_back(std::move(*result.fault));
    if (result.plan == nullptr) continue;
    tokens.push_back(result.plan->num_tokens());
    if (!lane.keeps_text) result.plan->DropText();
    held_bytes += result.plan->held_bytes();
    plans.push_back(std::move(result.plan));
  }
  const auto packed = PackSequences(tokens, sequence_length);
  lane.sequences.assign(packed.size(), {});
  const auto order = lane.order.SequenceOrder(state.window, static_cast<int32_t>(packed.size()));
  for (size_t i = 0; i < packed.size(); ++i) {
    for (const int32_t plan : packed[order[i]]) lane.sequences[i].push_back(plans[plan]);
  }
  lane.is_open = true;
  held_bytes_.fetch_add(held_bytes - std::exchange(lane.held_bytes, held_bytes),
                        std::memory_order_relaxed);
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
             .window_step = state_.step,
             .weights = {}};
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
