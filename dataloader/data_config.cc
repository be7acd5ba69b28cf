#include "dataloader/data_config.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "runtime/base/config_record.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

void ReadResize(ConfigReader* reader, ResizeMode* out) {
  reader->ReadEnum("resize", out,
                   {{"fast", ResizeMode::kFast}, {"torchvision", ResizeMode::kTorchvision}});
}

absl::Status ReadImage(const ConfigNode& node, ImageOptions* out) {
  ConfigReader reader(node);
  ReadResize(&reader, &out->resize);
  reader.ReadEnum("alpha", &out->alpha, {{"white", AlphaMode::kWhite}, {"drop", AlphaMode::kDrop}});
  reader.Read("min_pixels", &out->min_pixels, AtLeast(1));
  reader.Read("max_pixels", &out->max_pixels, AtLeast(1));
  for (const char* key : {"mean", "std"}) {
    if (reader.Has(key)) {
      reader.Keep(reader.Error(key,
                               "pixels are normalised by the encoder: this key belongs to "
                               "model.encoders.<vision>"));
    }
  }
  if (out->min_pixels > out->max_pixels) {
    reader.Keep(reader.Error(
        "min_pixels",
        absl::StrCat("is ", out->min_pixels, ", more than max_pixels (", out->max_pixels, ")")));
  }
  return reader.Finish();
}

absl::Status ReadVideo(const ConfigNode& node, VideoOptions* out, FrameText* frame_text) {
  ConfigReader reader(node);
  ReadResize(&reader, &out->resize);
  reader.ReadEnum(
      "frame_rule", &out->frame_rule,
      {{"even", FrameRule::kEven}, {"qwen2_5", FrameRule::kQwen2_5}, {"qwen3", FrameRule::kQwen3}});
  reader.ReadEnum(
      "frame_text", frame_text,
      {{"none", FrameText::kNone}, {"qwen3_vl", FrameText::kQwen3Vl}, {"seed", FrameText::kSeed}});
  reader.ReadEnum("budget", &out->budget,
                  {{"none", VideoBudget::kNone}, {"seed", VideoBudget::kSeed}});
  reader.Read("fps", &out->fps, Positive());
  reader.Read("min_frames", &out->min_frames, AtLeast(1));
  reader.Read("max_frames", &out->max_frames, AtLeast(1));
  reader.Read("min_pixels_per_frame", &out->min_pixels, AtLeast(1));
  reader.Read("max_pixels_per_frame", &out->max_pixels, AtLeast(1));
  reader.Read("min_pixels_per_clip", &out->min_clip_pixels, AtLeast(1));
  reader.Read("max_pixels_per_clip", &out->max_clip_pixels, AtLeast(1));
  if (out->min_frames > out->max_frames) {
    reader.Keep(reader.Error(
        "min_frames",
        absl::StrCat("is ", out->min_frames, ", more than max_frames (", out->max_frames, ")")));
  }
  if (out->min_pixels > out->max_pixels) {
    reader.Keep(
        reader.Error("min_pixels_per_frame",
                     absl::StrCat("is ", out->min_pixels, ", more than max_pixels_per_frame (",
                                  out->max_pixels, ")")));
  }
  for (const char* key : {"min_pixels_per_frame", "max_pixels_per_frame"}) {
    if (reader.Has(key) &&
        (reader.Has("min_pixels_per_clip") || reader.Has("max_pixels_per_clip"))) {
      reader.Keep(
          reader.Error(key, "bounds a frame, where max_pixels_per_clip bounds all of them"));
    }
  }
  if (out->budget != VideoBudget::kNone && out->max_clip_pixels > 0) {
    reader.Keep(reader.Error("budget", "bounds the clip by itself: max_pixels_per_clip can't too"));
  }
  if (out->min_clip_pixels > out->max_clip_pixels) {
    reader.Keep(
        reader.Error("min_pixels_per_clip",
                     absl::StrCat("is ", out->min_clip_pixels, ", more than max_pixels_per_clip (",
                                  out->max_clip_pixels, ")")));
  } else if (out->max_clip_pixels > 0 && out->min_clip_pixels == 0) {
    out->min_clip_pixels = 1;
  }
  return reader.Finish();
}

absl::Status ReadAudio(const ConfigNode& node, AudioOptions* out, AudioMask* mask) {
  ConfigReader reader(node);
  reader.Read("mel_bands", &out->mel_bands, Between(1, 1024));
  reader.Read("max_seconds", &out->max_seconds, Positive());
  reader.Read("mask_frames", &mask->frames, NonNegative());
  reader.Read("mask_bands", &mask->bands, NonNegative());
  if (mask->bands > out->mel_bands) {
    reader.Keep(reader.Error(
        "mask_bands",
        absl::StrCat("is ", mask->bands, ", more than mel_bands (", out->mel_bands, ")")));
  }
  return reader.Finish();
}

std::vector<std::string> SourceNames(const DataConfig& config) {
  std::vector<std::string> names;
  for (const SourceConfig& source : config.sources) names.push_back(source.name);
  return names;
}

// Names stand in tables, in metrics and on a terminal.
void ReadName(ConfigReader* reader, std::string* out) {
  reader->Read("name", out);
  reader->Require("name");
  for (const char c : *out) {
    if (static_cast<uint8_t>(c) >= 0x20 && c != 0x7f) continue;
    reader->Keep(reader->Error("name",
                               "has a control character (a line break, a tab); expected a "
                               "name of printable ones"));
    return;
  }
}

template <typename Source>
absl::Status CheckUnique(const ConfigNode& list, const std::vector<Source>& sources) {
  std::set<std::string> seen;
  for (size_t i = 0; i < sources.size(); ++i) {
    if (!seen.insert(sources[i].name).second) {
      return list.items()[i].Get("name").Error(
          absl::StrCat("\"", sources[i].name, "\" is the name of an earlier source"));
    }
  }
  return absl::OkStatus();
}

int64_t TokensPerStep(const PhaseConfig& phase, const DataConfig& config) {
  return (phase.lanes > 0 ? phase.lanes : config.lanes) *
         (phase.sequence_length > 0 ? phase.sequence_length : config.sequence_length);
}

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

absl::Status CheckPhases(const ConfigNode& list, const DataConfig& config) {
  const std::vector<std::string> names = SourceNames(config);
  const std::vector<int64_t> ends = config.PhaseEnds();
  int64_t previous_end = 0;
  for (size_t i = 0; i < config.phases.size(); ++i) {
    const PhaseConfig& phase = config.phases[i];
    const ConfigNode node = list.items()[i];
    if (phase.lanes > config.lanes) {
      return node.Get("lanes").Error(
          absl::StrCat("is ", phase.lanes, ", more than data.lanes (", config.lanes, ")"));
    }
    double sum = phase.weights.empty() ? 1 : 0;
    for (const auto& [name, weight] : phase.weights) {
      sum += weight;
      if (std::find(names.begin(), names.end(), name) != names.end()) continue;
      const std::string nearest = NearestName(name, names);
      return node.Get("weights").Get(name).Error(
          absl::StrCat("no source of this name",
                       nearest.empty() ? "" : absl::StrCat("; did you mean \"", nearest, "\"?")));
    }
    if (sum <= 0) return node.Error("the weights of a phase add up to 0, expected more");
    const int64_t end = ends[i];
    if (end <= previous_end) {
      return node.Error(absl::StrCat("ends at step ", end, ", the phase before it at step ",
                                     previous_end, "; expected a later one"));
    }
    previous_end = end;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Read(const ConfigNode& node, SourceConfig* out) {
  ConfigReader reader(node);
  ReadName(&reader, &out->name);
  reader.Read("path", &out->path);
  reader.Require("path");
  reader.Read("weight", &out->weight, NonNegative());
  reader.Read("video_fps", &out->video_fps, Positive());
  return reader.Finish();
}

absl::Status Read(const ConfigNode& node, PhaseConfig* out) {
  ConfigReader reader(node);
  reader.Read("until_step", &out->until_step, AtLeast(1));
  reader.Read("until_tokens", &out->until_tokens, AtLeast(1));
  if ((out->until_step > 0) == (out->until_tokens > 0)) {
    reader.Keep(reader.Error("expected either until_step or until_tokens"));
  }
  reader.Read("lanes", &out->lanes, AtLeast(1));
  reader.Read("sequence_length", &out->sequence_length, Between(2, 1 << 24));
  const ConfigNode weights = reader.Child("weights");
  if (weights.is_null() && (out->lanes > 0 || out->sequence_length > 0)) return reader.Finish();
  if (!weights.is_map()) {
    reader.Keep(weights.is_null() ? reader.Error("weights is missing")
                                  : weights.Error("expected a mapping of source names to weights"));
    return reader.Finish();
  }
  for (const std::string& name : weights.keys()) {
    const ConfigNode value = weights.Get(name);
    absl::StatusOr<double> weight = value.AsDouble();
    if (!weight.ok()) {
      reader.Keep(weight.status());
    } else if (!(*weight >= 0)) {
      reader.Keep(value.Error(absl::StrCat("found ", *weight, ", expected 0 or more")));
    } else {
      out->weights.emplace_back(name, *weight);
    }
  }
  return reader.Finish();
}

absl::Status Read(const ConfigNode& node, EvalConfig* out) {
  ConfigReader reader(node);
  ReadName(&reader, &out->name);
  reader.Read("path", &out->path);
  reader.Require("path");
  reader.Read("max_samples", &out->max_samples, NonNegative());
  reader.Read("video_fps", &out->video_fps, Positive());
  reader.Read("group_by", &out->group_by);
  return reader.Finish();
}

absl::Status Read(const ConfigNode& node, PrefetchConfig* out) {
  ConfigReader reader(node);
  reader.Read("threads", &out->threads, Between(0, 256));
  reader.Read("prefetch_steps", &out->prefetch_steps, Between(1, 1024));
  reader.Read("memory_mib", &out->memory_mib, AtLeast(1));
  reader.Read("retry_s", &out->retry_s, Between(0, 3600));
  return reader.Finish();
}

absl::Status Read(const ConfigNode& node, DataConfig* out) {
  ConfigReader reader(node);
  reader.Read("seed", &out->seed);
  reader.Read("lanes", &out->lanes, Between(1, 1 << 20));
  reader.Read("sequence_length", &out->sequence_length, Between(2, 1 << 24));
  reader.Read("window", &out->window, Between(1, 1 << 20));
  reader.Read("micro_batch_sequences", &out->micro_batch_sequences, Between(1, 1 << 20));
  reader.ReadEnum("overlong", &out->overlong, {{"drop", Overlong::kDrop}, {"cut", Overlong::kCut}});
  reader.Read("tokenizer", &out->tokenizer);
  reader.Require("tokenizer");
  reader.ReadEnum("template", &out->chat_template,
                  {{"chatml", Template::kChatml},
                   {"plain", Template::kPlain},
                   {"qwen2", Template::kQwen2},
                   {"qwen2_5", Template::kQwen25},
                   {"qwen2_vl", Template::kQwen2Vl},
                   {"qwen2_5_omni", Template::kQwen25Omni},
                   {"qwen2_audio", Template::kQwen2Audio},
                   {"qwen3", Template::kQwen3},
                   {"llama3", Template::kLlama3}});
  out->special_tokens = NamesOf(out->chat_template);
  reader.ReadStruct("special_tokens", &out->special_tokens);
  reader.Read("text_has_specials", &out->text_has_specials);
  if (const ConfigNode image = reader.Child("image"); !image.is_null()) {
    reader.Keep(ReadImage(image, &out->image));
  }
  if (const ConfigNode video = reader.Child("video"); !video.is_null()) {
    reader.Keep(ReadVideo(video, &out->video, &out->frame_text));
  }
  if (const ConfigNode audio = reader.Child("audio"); !audio.is_null()) {
    reader.Keep(ReadAudio(audio, &out->audio, &out->audio_mask));
  }
  reader.ReadEnum("position_rule", &out->positions.rule,
                  {{"qwen2_5_max", PositionRule::kQwen2_5Max},
                   {"qwen2_5_whole", PositionRule::kQwen2_5Whole},
                   {"qwen2_5_grid", PositionRule::kQwen2_5Grid},
                   {"qwen3_vl", PositionRule::kQwen3Vl},
                   {"sequential", PositionRule::kSequential}});
  reader.Read("positions_per_second", &out->positions.positions_per_second, Positive());
  if (out->positions.rule == PositionRule::kQwen3Vl && out->frame_text == FrameText::kNone) {
    if (node.Get("video").Get("frame_text").is_null()) {
      out->frame_text = FrameText::kQwen3Vl;
      NoteConfigValue(node.path() + ".video.frame_text", "qwen3_vl");
    } else {
      reader.Keep(node.Get("video")
                      .Get("frame_text")
                      .Error("is none, but position_rule: qwen3_vl places every frame by itself"));
    }
  }
  reader.Read("vision_encoder", &out->vision_encoder);
  reader.Read("audio_encoder", &out->audio_encoder);
  if (out->vision_encoder == out->audio_encoder) {
    reader.Keep(reader.Error("vision_encoder", "is the same as audio_encoder"));
  }
  reader.Read("max_broken", &out->max_broken, Between(0, 1));
  reader.ReadStruct("loader", &out->loader);

  const ConfigNode sources = reader.Child("sources");
  if (sources.is_null() || (sources.is_sequence() && sources.items().empty())) {
    reader.Keep(reader.Error("sources is missing or empty, expected at least one source"));
  }
  reader.ReadList("sources", &out->sources);
  reader.ReadList("phases", &out->phases);
  reader.ReadList("eval", &out->eval);
  OMNI_RETURN_IF_ERROR(reader.Finish());

  OMNI_RETURN_IF_ERROR(CheckUnique(sources, out->sources));
  OMNI_RETURN_IF_ERROR(CheckUnique(node.Get("eval"), out->eval));
  double sum = 0;
  for (const SourceConfig& source : out->sources) sum += source.weight;
  if (sum <= 0) return sources.Error("the weights of the sources add up to 0, expected more");
  return CheckPhases(node.Get("phases"), *out);
}

bool DataConfig::DrawsFrom(size_t index) const {
  if (sources[index].weight > 0) return true;
  for (const PhaseConfig& phase : phases) {
    for (const auto& [name, weight] : phase.weights) {
      if (name == sources[index].name && weight > 0) return true;
    }
  }
  return false;
}

std::vector<int64_t> DataConfig::PhaseEnds() const {
  std::vector<int64_t> ends;
  int64_t step = 0, tokens = 0;
  for (const PhaseConfig& phase : phases) {
    const int64_t per_step = TokensPerStep(phase, *this);
    const int64_t end =
        phase.until_step > 0
            ? phase.until_step
            : step + CeilDiv(std::max<int64_t>(0, phase.until_tokens - tokens), per_step);
    tokens += std::max<int64_t>(0, end - step) * per_step;
    step = std::max(step, end);
    ends.push_back(end);
  }
  return ends;
}

const PhaseConfig* DataConfig::PhaseAt(int64_t step) const {
  const std::vector<int64_t> ends = PhaseEnds();
  for (size_t i = 0; i < phases.size(); ++i) {
    if (step < ends[i]) return &phases[i];
  }
  return nullptr;
}

int32_t DataConfig::LanesAt(int64_t step) const {
  const PhaseConfig* phase = PhaseAt(step);
  return phase != nullptr && phase->lanes > 0 ? phase->lanes : lanes;
}

int64_t DataConfig::SequenceLengthAt(int64_t step) const {
  const PhaseConfig* phase = PhaseAt(step);
  return phase != nullptr && phase->sequence_length > 0 ? phase->sequence_length : sequence_length;
}

int64_t DataConfig::StepAtTokens(int64_t tokens) const {
  const std::vector<int64_t> ends = PhaseEnds();
  int64_t step = 0;
  for (size_t i = 0; i < phases.size(); ++i) {
    const int64_t per_step = TokensPerStep(phases[i], *this);
    if (tokens <= (ends[i] - step) * per_step) return step + CeilDiv(tokens, per_step);
    tokens -= (ends[i] - step) * per_step;
    step = ends[i];
  }
  return step + CeilDiv(tokens, lanes * sequence_length);
}

std::vector<double> DataConfig::WeightsAt(int64_t step) const {
  std::vector<double> weights(sources.size(), 0.0);
  const PhaseConfig* current = PhaseAt(step);
  for (size_t i = 0; i < sources.size(); ++i) {
    if (current == nullptr || current->weights.empty()) {
      weights[i] = sources[i].weight;
    } else {
      for (const auto& [name, weight] : current->weights) {
        if (name == sources[i].name) weights[i] = weight;
      }
    }
  }
  double sum = 0;
  for (const double weight : weights) sum += weight;
  for (double& weight : weights) weight /= sum;
  return weights;
}

}  // namespace omni::dataloader
