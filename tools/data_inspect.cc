#include "tools/data_inspect.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "dataloader/batch.h"
#include "dataloader/loader.h"
#include "dataloader/media/encode.h"
#include "dataloader/media/patches.h"
#include "dataloader/media_decoder.h"
#include "encoders/encoder.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "runtime/base/text.h"
#include "tools/one_sample.h"
#include "trainer/assemble.h"
#include "trainer/recipe.h"

namespace omni::tools {
namespace {

using dataloader::Image;
using dataloader::MediaInfo;
using dataloader::MediaKind;
using dataloader::Microbatch;
using dataloader::SamplePlan;
using parallel::MediaItem;
using parallel::MediaPack;

// The recipe's data section with nothing but the wanted source in it.
absl::StatusOr<dataloader::DataConfig> OnlySource(dataloader::DataConfig config,
                                                  const DataInspectOptions& options) {
  std::vector<dataloader::SourceConfig> candidates = config.sources;
  if (options.heldout) {
    candidates.clear();
    for (const dataloader::EvalConfig& eval : config.eval) {
      candidates.push_back({.name = eval.name, .path = eval.path});
    }
  }
  std::vector<std::string> names;
  for (const dataloader::SourceConfig& source : candidates) {
    names.push_back(source.name);
    if (source.name == options.source || options.source.empty()) {
      config.sources = {source};
      return config;
    }
  }
  const std::string nearest = NearestName(options.source, names);
  return absl::NotFoundError(
      absl::StrCat(options.recipe, ": no source \"", options.source, "\" in ",
                   options.heldout ? "data.eval" : "data.sources",
                   nearest.empty() ? "" : absl::StrCat(", did you mean \"", nearest, "\"?")));
}

// All frames of a clip, or the picture, from left to right.
Image FramesOf(const MediaPack& pack, const MediaItem& item, bool is_video,
               const dataloader::PatchGeometry& geometry) {
  const int64_t row_bytes = pack.row_elements;
  const absl::Span<const uint8_t> rows(pack.payload.data() + item.input_row * row_bytes,
                                       static_cast<size_t>(item.num_input_rows * row_bytes));
  const dataloader::PatchGrid grid{item.t, item.h, item.w};
  const int32_t num_frames = is_video ? item.t * geometry.temporal_patch : 1;
  Image strip;
  for (int32_t f = 0; f < num_frames; ++f) {
    const Image frame = dataloader::UnpackPatches(rows, geometry, grid, f);
    if (f == 0) {
      strip.size = {.height = frame.size.height, .width = frame.size.width * num_frames};
      strip.rgb.resize(static_cast<size_t>(strip.size.height) * strip.size.width * 3);
    }
    for (int32_t y = 0; y < frame.size.height; ++y) {
      const size_t bytes = static_cast<size_t>(frame.size.width) * 3;
      std::memcpy(&strip.rgb[(static_cast<size_t>(y) * num_frames + f) * bytes],
                  &frame.rgb[y * bytes], bytes);
    }
  }
  return strip;
}

// Grey from the clip's least to its greatest value, three pixels a value.
Image MelOf(const MediaPack& pack, const MediaItem& item) {
  constexpr int32_t kZoom = 3;
  const int32_t bands = pack.row_elements;
  const auto frames = static_cast<int32_t>(item.num_input_rows);
  std::vector<float> mel(static_cast<size_t>(frames) * bands);
  std::memcpy(mel.data(), pack.payload.data() + item.input_row * bands * sizeof(float),
              mel.size() * sizeof(float));
  const auto [low, high] = std::minmax_element(mel.begin(), mel.end());
  const float scale = *high > *low ? 255.0f / (*high - *low) : 0.0f;
  Image image;
  image.size = {.height = bands * kZoom, .width = frames * kZoom};
  for (int32_t y = 0; y < image.size.height; ++y) {
    for (int32_t x = 0; x < image.size.width; ++x) {
      const float value = mel[static_cast<size_t>(x / kZoom) * bands + (bands - 1 - y / kZoom)];
      image.rgb.insert(image.rgb.end(), 3, static_cast<uint8_t>((value - *low) * scale));
    }
  }
  return image;
}

std::string Describe(const MediaInfo& info, const dataloader::MediaShape& shape) {
  const MediaItem& item = shape.item;
  std::string text;
  switch (info.kind) {
    case MediaKind::kImage:
      text = absl::StrFormat("%s %dx%d", Name(info.format), info.width, info.height);
      break;
    case MediaKind::kAudio:
      text = absl::StrFormat("%s %.2f s at %d Hz", Name(info.format), info.duration_s,
                             info.sample_rate);
      break;
    case MediaKind::kVideo:
      text = absl::StrFormat("%s %dx%d, %d frames in %.2f s", Name(info.format), info.width,
                             info.height, info.num_frames, info.duration_s);
      break;
  }
  if (info.kind == MediaKind::kAudio) {
    absl::StrAppendFormat(&text, " -> %d mel frames", item.num_input_rows);
  } else {
    absl::StrAppendFormat(&text, " -> grid %dx%dx%d, %d patches", item.t, item.h, item.w,
                          item.num_input_rows);
  }
  absl::StrAppendFormat(&text, " -> %d tokens", item.num_output_rows);
  return text;
}

// A line for each token; a medium's pads take two, the first and the last.
std::string TokenTable(const SamplePlan& plan, const parallel::TokenPack& pack,
                       const dataloader::Tokenizer& tokenizer) {
  const auto& sample = plan.tokenized;
  const int64_t count = pack.num_tokens();
  std::string text = "    at    id  loss  piece                 temporal  height   width\n";
  const auto line = [&](int64_t t) {
    // SentencePiece writes a space as U+2581.
    const std::string piece = absl::Utf8SafeCHexEscape(
        absl::StrReplaceAll(tokenizer.Piece(sample.tokens[t]), {{"\xe2\x96\x81", "_"}}));
    absl::StrAppendFormat(&text, "%6d %5d  %s  %-20s %9.6g %7.6g %7.6g\n", t, sample.tokens[t],
                          t > 0 && pack.targets[t - 1] >= 0 ? "loss" : "  - ", piece,
                          pack.positions[t], pack.positions[count + t],
                          pack.positions[2 * count + t]);
  };
  std::map<int64_t, const dataloader::MediaSpan*> runs;  // of pads, by first token
  for (const dataloader::MediaSpan& media : sample.media) {
    for (const int64_t run_begin : media.run_begins) runs[run_begin] = &media;
  }
  for (int64_t t = 0; t < count; ++t) {
    line(t);
    const auto run = runs.find(t);
    if (run == runs.end()) continue;
    const int64_t rows = run->second->run_rows();
    if (rows > 2)
      absl::StrAppendFormat(&text, "       ... %d more of medium %d\n", rows - 2,
                            run->second->media_index);
    if (rows > 1) line(t + rows - 1);
    t += std::max<int64_t>(rows, 1) - 1;
  }
  return text;
}

// FLOPs depend on the shapes of the weights alone, so they are bound to shapes without memory.
absl::StatusOr<trainer::MicrobatchFlops> CostOf(const trainer::Recipe& recipe,
                                                const Microbatch& microbatch) {
  encoders::EncoderRegistry registry;
  encoders::RegisterEncoders(registry);
  OMNI_ASSIGN_OR_RETURN(const auto model, trainer::MultimodalModel::Create(recipe.model, registry));
  parallel::ParameterStore store;
  char no_memory = 0;
  for (const parallel::ParameterSpec& spec : model->Parameters()) {
    const TensorView shape =
        TensorView::Dense(&no_memory, DType::kFloat32, DeviceKind::kCpu, spec.shape);
    store.Put(spec.path, {.value = shape, .grad = shape});
  }
  model->Bind(store);
  return model->Flops(microbatch.tokens, microbatch.media);
}

absl::Status MakeFolder(const std::string& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (!error) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrCat("can't make folder ", folder, ": ", error.message()));
}

}  // namespace

absl::StatusOr<std::string> InspectSample(const DataInspectOptions& options) {
  OMNI_ASSIGN_OR_RETURN(const trainer::Recipe recipe,
                        trainer::LoadRecipe(options.recipe, options.overrides));
  OMNI_ASSIGN_OR_RETURN(const dataloader::DataConfig config, OnlySource(recipe.data, options));
  const std::string& source = config.sources[0].name;
  OMNI_ASSIGN_OR_RETURN(const auto planner, dataloader::OpenSources(config));
  OMNI_ASSIGN_OR_RETURN(const OneSample sample, LoadOneSample(*planner, options.index));
  const std::shared_ptr<const SamplePlan>& plan = sample.plan;
  const Microbatch& microbatch = sample.microbatch;
  const int64_t num_samples = planner->sources()[0].store->num_samples();
  OMNI_ASSIGN_OR_RETURN(const trainer::MicrobatchFlops flops, CostOf(recipe, microbatch));

  std::string report = absl::StrCat(plan->sample_id, ", sample ", options.index, " of ",
                                    num_samples, " in source \"", source, "\"");
  const auto conversation = planner->sources()[0].store->LoadConversation(options.index);
  if (conversation.ok() && !conversation->question.empty()) {
    absl::StrAppend(&report, ", question \"", Printable(conversation->question), "\"");
  }
  absl::StrAppend(&report, "\n");
  if (plan->was_cut) absl::StrAppend(&report, "cut to fit data.sequence_length\n");
  if (!options.out.empty()) OMNI_RETURN_IF_ERROR(MakeFolder(options.out));

  // A pack's items are in the order of the sample's media of that encoder.
  size_t next_vision = 0, next_audio = 0;
  for (const dataloader::MediaSpan& media : plan->tokenized.media) {
    const MediaInfo& info = plan->media_info[media.media_index];
    absl::StrAppend(&report, Name(info.kind), " ", media.media_index, ": ",
                    Describe(info, media.shape));
    if (!options.out.empty()) {
      const bool is_audio = info.kind == MediaKind::kAudio;
      const MediaPack& pack =
          microbatch.media.at(is_audio ? config.audio_encoder : config.vision_encoder);
      const MediaItem& item = pack.items[is_audio ? next_audio++ : next_vision++];
      const Image picture =
          is_audio ? MelOf(pack, item)
                   : FramesOf(pack, item, info.kind == MediaKind::kVideo, config.image.geometry);
      const std::string path = absl::StrCat(options.out, "/", source, "-", options.index, ".",
                                            media.media_index, ".png");
      OMNI_ASSIGN_OR_RETURN(const std::string png, dataloader::EncodePng(picture));
      OMNI_RETURN_IF_ERROR(WriteFileAtomically(path, png));
      absl::StrAppend(&report, "  (", path, ")");
    }
    absl::StrAppend(&report, "\n");
  }
  absl::StrAppend(&report, "\n", TokenTable(*plan, microbatch.tokens, planner->tokenizer()));

  const auto counts = dataloader::CountsOf(*plan, config);
  absl::StrAppendFormat(&report, "\n%d tokens, %d with loss", counts.tokens,
                        microbatch.loss_tokens);
  for (const auto& [encoder, rows] : counts.input_rows) {
    if (rows > 0) absl::StrAppendFormat(&report, ", %d rows into %s", rows, encoder);
  }
  absl::StrAppendFormat(
      &report, "\n%.4g GFLOP a training step: encoders %.4g, decoder %.4g (forward %.4g in all)\n",
      flops.total() / 1e9, flops.encoders.total() / 1e9, flops.decoder.total() / 1e9,
      (flops.encoders.forward + flops.decoder.forward) / 1e9);
  return report;
}

}  // namespace omni::tools
