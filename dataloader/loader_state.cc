// What a checkpoint keeps of the data, as text.
#include <exception>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "dataloader/step_planner.h"
#include "runtime/base/rng.h"

namespace omni::dataloader {

using Json = nlohmann::json;

namespace {

// Version 1 had all in a text: "seed 1, 4 lanes, window 64, sequence_length 512, overlong drop,
// source a of 200 samples, ...". What it does not say stays open.
bool ReadFingerprint(const std::string& text, LoaderState* state) {
  const std::vector<std::string> parts = absl::StrSplit(text, ", source ");
  const std::vector<std::string> words = absl::StrSplit(parts[0], ", ");
  if (words.size() != 5) return false;
  int64_t draws = 0, sequence_length = 0;
  if (!absl::SimpleAtoi(absl::StripPrefix(words[0], "seed "), &state->seed) ||
      !absl::SimpleAtoi(absl::StripPrefix(words[2], "window "), &draws) ||
      !absl::SimpleAtoi(absl::StripPrefix(words[3], "sequence_length "), &sequence_length)) {
    return false;
  }
  for (size_t i = 1; i < parts.size(); ++i) {
    const size_t of = parts[i].rfind(" of ");
    SourceState source;
    if (of == std::string::npos ||
        !absl::SimpleAtoi(absl::StripSuffix(parts[i].substr(of + 4), " samples"),
                          &source.samples)) {
      return false;
    }
    source.name = parts[i].substr(0, of);
    state->sources.push_back(source);
  }
  for (LaneState& lane : state->lanes) {
    if (lane.position == 0) continue;
    lane.draws = static_cast<int32_t>(draws);
    lane.sequence_length = sequence_length;
  }
  return true;
}

}  // namespace

std::string LoaderState::ToJson() const {
  Json json = {{"version", 2}, {"step", step}, {"seed", seed}, {"reading", reading}};
  json["sources"] = Json::array();
  for (const SourceState& source : sources) {
    json["sources"].push_back({{"name", source.name},
                               {"path", source.path},
                               {"samples", source.samples},
                               {"bytes", source.bytes},
                               {"video_fps", source.video_fps}});
  }
  json["lanes"] = Json::array();
  for (const LaneState& lane : lanes) {
    Json item = {{"cursors", lane.cursors},
                 {"window", lane.window},
                 {"position", lane.position},
                 {"window_step", lane.window_step}};
    if (!lane.weights.empty()) {
      item["open"] = {{"weights", lane.weights},
                      {"sequence_length", lane.sequence_length},
                      {"draws", lane.draws}};
    }
    json["lanes"].push_back(std::move(item));
  }
  // A name that is not UTF-8 is no reason to lose a checkpoint.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

absl::StatusOr<LoaderState> LoaderState::FromJson(const std::string& text) {
  try {
    const Json json = Json::parse(text);
    const int version = json.at("version").get<int>();
    if (version != 1 && version != 2) {
      return absl::DataLossError(
          absl::StrCat("data state is of version ", version, ", expected 1 or 2"));
    }
    LoaderState state;
    state.step = json.at("step").get<int64_t>();
    if (version == 2) {
      state.seed = json.at("seed").get<uint64_t>();
      state.reading = json.at("reading").get<std::string>();
      for (const Json& item : json.at("sources")) {
        state.sources.push_back({.name = item.at("name").get<std::string>(),
                                 .path = item.at("path").get<std::string>(),
                                 .samples = item.at("samples").get<int64_t>(),
                                 .bytes = item.at("bytes").get<int64_t>(),
                                 .video_fps = item.at("video_fps").get<double>()});
      }
    }
    size_t num_sources = 0;
    for (const Json& item : json.at("lanes")) {
      LaneState lane;
      lane.cursors = item.at("cursors").get<std::vector<int64_t>>();
      lane.window = item.at("window").get<int64_t>();
      lane.position = item.at("position").get<int64_t>();
      lane.window_step = item.at("window_step").get<int64_t>();
      if (item.contains("open")) {
        lane.weights = item.at("open").at("weights").get<std::vector<double>>();
        lane.sequence_length = item.at("open").at("sequence_length").get<int64_t>();
        lane.draws = item.at("open").at("draws").get<int32_t>();
      }
      bool is_valid = lane.window >= 0 && lane.position >= 0 && lane.window_step >= 0 &&
                      lane.draws >= 0 && lane.sequence_length >= 0;
      for (const int64_t cursor : lane.cursors) is_valid &= cursor >= 0;
      for (const double weight : lane.weights) is_valid &= weight >= 0;
      if (!state.lanes.empty()) is_valid &= lane.cursors.size() == num_sources;
      num_sources = lane.cursors.size();
      if (!is_valid) return absl::DataLossError("data state has an impossible lane");
      state.lanes.push_back(std::move(lane));
    }
    if (version == 1 && !state.lanes.empty() &&
        !ReadFingerprint(json.at("fingerprint").get<std::string>(), &state)) {
      return absl::DataLossError("data state does not say of which data it is");
    }
    if (num_sources != state.sources.size()) {
      return absl::DataLossError("data state has a lane of other sources than it says");
    }
    for (const SourceState& source : state.sources) {
      if (source.samples < 0) return absl::DataLossError("data state has an impossible source");
    }
    return state;
  } catch (const std::exception& error) {
    return absl::DataLossError(absl::StrCat("data state can't be read: ", error.what()));
  }
}

LoaderState StartState(const SamplePlanner& samples) {
  const DataConfig& config = samples.config();
  LoaderState state = {.seed = config.seed, .reading = ReadingOf(config, samples.tokenizer())};
  for (const OpenedSource& source : samples.sources()) {
    state.sources.push_back({.name = source.name,
                             .path = source.path,
                             .samples = source.store->num_samples(),
                             .bytes = source.bytes,
                             .video_fps = source.video_fps});
  }
  state.lanes.resize(config.lanes);
  for (LaneState& lane : state.lanes) lane.cursors.resize(state.sources.size());
  return state;
}

std::string ReadingOf(const DataConfig& config, const Tokenizer& tokenizer) {
  const SpecialTokenNames& names = config.special_tokens;
  const VideoOptions& video = config.video;
  std::string text = absl::StrCat(
      static_cast<int>(config.overlong), " ", static_cast<int>(config.chat_template), " ",
      config.text_has_specials, " ", static_cast<int>(config.frame_text), " ",
      config.image.min_pixels, " ", config.image.max_pixels, " ", config.audio.max_seconds);
  absl::StrAppend(&text, " ", static_cast<int>(video.frame_rule), " ",
                  static_cast<int>(video.budget), " ", video.fps, " ", video.min_frames, " ",
                  video.max_frames, " ", video.min_pixels, " ", video.max_pixels, " ",
                  video.min_clip_pixels, " ", video.max_clip_pixels);
  for (const std::string* name :
       {&names.im_start, &names.im_end, &names.header_end, &names.vision_start, &names.vision_end,
        &names.image_pad, &names.video_pad, &names.audio_start, &names.audio_end, &names.audio_pad,
        &names.bos, &names.eos}) {
    absl::StrAppend(&text, " ", *name);
  }
  // The tokenizer by what it does: its file may have moved.
  absl::StrAppend(&text, " ", tokenizer.vocab_size());
  for (const int32_t id : tokenizer.Encode("The quick brown fox, 47 times: naive, na\xc3\xafve.")) {
    absl::StrAppend(&text, " ", id);
  }
  return absl::StrCat(absl::Hex(StreamOf(text), absl::kZeroPad16));
}

std::string DataFingerprint(const LoaderState& state) {
  std::string text = absl::StrCat("seed ", state.seed, ", ", state.lanes.size(), " lanes");
  for (const SourceState& source : state.sources) {
    absl::StrAppend(&text, ", source ", source.name, " of ", source.samples, " samples");
  }
  return text;
}

}  // namespace omni::dataloader
