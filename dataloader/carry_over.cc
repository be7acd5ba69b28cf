#include "dataloader/carry_over.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "dataloader/lane.h"
#include "runtime/base/rng.h"

namespace omni::dataloader {
namespace {

LaneOrder::Options OptionsOf(const LoaderState& state, int32_t window) {
  LaneOrder::Options options{
      .seed = state.seed, .num_lanes = static_cast<int32_t>(state.lanes.size()), .window = window};
  for (const SourceState& source : state.sources) {
    options.source_streams.push_back(StreamOf(source.name));
    options.source_sizes.push_back(source.samples);
  }
  return options;
}

// What became of a source of the saved state.
struct Fate {
  const SourceState* now = nullptr;  // null: it is gone
  bool goes_on = false;              // its cursors still mean the same samples
  bool is_unchanged = false;         // and those have as many tokens
};

Fate FateOf(const SourceState& was, const std::vector<SourceState>& sources) {
  const auto found = std::find_if(sources.begin(), sources.end(),
                                  [&](const SourceState& s) { return s.name == was.name; });
  if (found == sources.end()) return {};
  const bool same_bytes = was.bytes == found->bytes || was.bytes == 0 || found->bytes == 0;
  Fate fate{.now = &*found};
  fate.goes_on =
      was.samples == found->samples && (was.path == found->path || was.path.empty() || same_bytes);
  fate.is_unchanged = fate.goes_on && same_bytes && was.video_fps == found->video_fps;
  return fate;
}

// Epochs that `source` has begun, the furthest lane's; with what was drawn in all, of one epoch.
struct Epochs {
  int64_t begun = 0;
  double drawn = 0;
};

Epochs EpochsOf(const LoaderState& state, size_t source) {
  Epochs epochs;
  int64_t draws = 0, share_sum = 0;
  LaneOrder::Options options = OptionsOf(state, 1);
  for (options.lane = 0; options.lane < options.num_lanes; ++options.lane) {
    const int64_t share = LaneOrder(options).share_size(static_cast<int32_t>(source));
    const int64_t cursor = state.lanes[options.lane].cursors[source];
    if (share == 0) continue;
    epochs.begun = std::max(epochs.begun, (cursor + share - 1) / share);
    draws += cursor;
    share_sum += share;
  }
  if (share_sum > 0) epochs.drawn = static_cast<double>(draws) / static_cast<double>(share_sum);
  return epochs;
}

// Version 1 did not keep the weights of open windows: they are those of the recipe.
void FillWeights(const DataConfig& config, LoaderState* state) {
  for (LaneState& lane : state->lanes) {
    if (lane.position == 0 || !lane.weights.empty()) continue;
    const std::vector<double> weights = config.WeightsAt(lane.window_step);
    double sum = 0;
    bool is_whole = true;
    for (const SourceState& source : state->sources) {
      const auto found = std::find_if(config.sources.begin(), config.sources.end(),
                                      [&](const SourceConfig& s) { return s.name == source.name; });
      is_whole &= found != config.sources.end();
      lane.weights.push_back(found == config.sources.end() || source.samples == 0
                                 ? 0.0
                                 : weights[found - config.sources.begin()]);
      sum += lane.weights.back();
    }
    if (sum <= 0) {
      lane.weights.clear();
    } else if (!is_whole) {
      for (double& weight : lane.weights) weight /= sum;
    }
  }
}

// To the window after the one it stands at.
void LeaveWindow(const LoaderState& state, int32_t lane_index, LaneState* lane) {
  LaneOrder::Options options = OptionsOf(state, std::max(1, lane->draws));
  options.lane = lane_index;
  std::vector<int64_t> after = lane->cursors;
  if (!lane->weights.empty()) LaneOrder(options).Draw(*lane, lane->weights, &after, lane->draws);
  *lane = {.cursors = std::move(after),
           .window = lane->window + 1,
           .position = 0,
           .window_step = state.step,
           .weights = {}};
}

std::string NextEpoch(const std::string& name, const Epochs& epochs) {
  return absl::StrFormat("\"%s\" begins epoch %d, in another order (%.2f epochs were drawn)", name,
                         epochs.begun + 1, epochs.drawn);
}

}  // namespace

CarriedOver CarryOver(LoaderState saved, const SamplePlanner& samples) {
  CarriedOver carried{.state = StartState(samples), .notes = {}};
  if (saved.lanes.empty()) return carried;
  LoaderState& state = carried.state;
  std::vector<std::string>& notes = carried.notes;
  state.step = saved.step;
  FillWeights(samples.config(), &saved);
  const std::vector<SourceState> now = std::move(state.sources);
  std::vector<Fate> fates;
  for (const SourceState& source : saved.sources) fates.push_back(FateOf(source, now));
  const bool same_deal = saved.seed == state.seed && saved.lanes.size() == state.lanes.size();
  const bool same_reading = saved.reading.empty() || saved.reading == state.reading;

  // Windows that are open and can't go on.
  int64_t left = 0;
  int32_t most_draws = 0;
  for (size_t i = 0; i < saved.lanes.size(); ++i) {
    LaneState& lane = saved.lanes[i];
    if (lane.position == 0) continue;
    bool goes_on = same_deal && same_reading && !lane.weights.empty();
    for (size_t s = 0; s < lane.weights.size(); ++s) {
      goes_on &= lane.weights[s] == 0 || fates[s].is_unchanged;
    }
    if (goes_on) continue;
    most_draws = std::max(most_draws, lane.draws);
    ++left;
    LeaveWindow(saved, static_cast<int32_t>(i), &lane);
  }

  // Sources in the state's order, then the new ones: an order of the recipe's list means nothing.
  std::vector<int32_t> old_of;  // of state.sources: which of saved.sources, or -1
  for (size_t s = 0; s < fates.size(); ++s) {
    if (fates[s].now == nullptr) {
      notes.push_back(absl::StrFormat("source \"%s\" is gone (%.2f epochs of it were drawn)",
                                      saved.sources[s].name, EpochsOf(saved, s).drawn));
      continue;
    }
    state.sources.push_back(*fates[s].now);
    old_of.push_back(static_cast<int32_t>(s));
  }
  for (const SourceState& source : now) {
    const bool is_new = std::none_of(fates.begin(), fates.end(), [&](const Fate& fate) {
      return fate.now != nullptr && fate.now->name == source.name;
    });
    if (!is_new) continue;
    state.sources.push_back(source);
    old_of.push_back(-1);
    notes.push_back(
        absl::StrCat("source \"", source.name, "\" is new: it begins with its first epoch"));
  }

  // Lanes.
  int64_t window = 0;
  for (const LaneState& lane : saved.lanes) window = std::max(window, lane.window);
  for (size_t i = 0; i < state.lanes.size(); ++i) {
    LaneState& lane = state.lanes[i];
    lane = {.cursors = std::vector<int64_t>(state.sources.size(), 0),
            .window = window,
            .position = 0,
            .window_step = saved.step,
            .weights = {}};
    if (!same_deal) continue;
    const LaneState& was = saved.lanes[i];
    lane = was;
    lane.cursors.assign(state.sources.size(), 0);
    if (!was.weights.empty()) lane.weights.assign(state.sources.size(), 0.0);
    for (size_t s = 0; s < state.sources.size(); ++s) {
      if (old_of[s] < 0) continue;
      lane.cursors[s] = was.cursors[old_of[s]];
      if (!was.weights.empty()) lane.weights[s] = was.weights[old_of[s]];
    }
  }

  // Sources whose cursors mean nothing any more.
  if (!same_deal) {
    notes.push_back(saved.seed != state.seed
                        ? absl::StrCat("data.seed is ", state.seed, ", it was ", saved.seed,
                                       ": every source goes on in another order")
                        : absl::StrCat("there are ", state.lanes.size(), " lanes, there were ",
                                       saved.lanes.size(), ": samples are dealt out to them anew"));
  }
  for (size_t s = 0; s < state.sources.size(); ++s) {
    if (old_of[s] < 0) continue;
    const SourceState& was = saved.sources[old_of[s]];
    const SourceState& is = state.sources[s];
    const Fate& fate = fates[old_of[s]];
    if (fate.goes_on && same_deal) {
      if (!was.path.empty() && was.path != is.path) {
        notes.push_back(absl::StrCat("source \"", is.name, "\" is at ", is.path,
                                     " now, with as many samples and bytes: it goes on"));
      } else if (!fate.is_unchanged && was.video_fps == is.video_fps) {
        notes.push_back(absl::StrCat("the files of source \"", is.name, "\" have ", is.bytes,
                                     " bytes, they had ", was.bytes,
                                     ", and as many samples: it goes on"));
      }
      continue;
    }
    const Epochs epochs = EpochsOf(saved, old_of[s]);
    LaneOrder::Options options = OptionsOf(state, 1);
    for (options.lane = 0; options.lane < options.num_lanes; ++options.lane) {
      state.lanes[options.lane].cursors[s] =
          epochs.begun * LaneOrder(options).share_size(static_cast<int32_t>(s));
    }
    if (epochs.begun == 0) continue;  // nothing of it was drawn
    notes.push_back(absl::StrCat(
        "source ", NextEpoch(is.name, epochs),
        fate.goes_on ? ""
        : was.samples == is.samples
            ? ": its content is another"
            : absl::StrCat(": it has ", is.samples, " samples, it had ", was.samples)));
  }
  if (left > 0) {
    notes.push_back(absl::StrCat(
        "the windows under way of ", left, " lanes are left out from here",
        most_draws > 0 ? absl::StrCat(": at most ", most_draws, " samples of each") : ""));
  }
  return carried;
}

}  // namespace omni::dataloader
