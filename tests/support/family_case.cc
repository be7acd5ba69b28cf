#include "tests/support/family_case.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace omni::testing {
namespace {

using parallel::MediaItem;
using parallel::MediaPack;

// Pictures or clips of a case: grids, and patches as the bytes they were before normalisation.
struct Media {
  std::vector<MediaItem> items;
  std::vector<uint8_t> patches;
  int32_t row_elements = 0;
};

Media ReadVision(const FamilyCase& golden, const ConfigNode& vision, const std::string& pixels,
                 const std::string& grids) {
  Media media;
  if (!golden.Has(pixels)) return media;
  const std::vector<double> values = golden.Floats(pixels);
  const std::vector<int32_t> thw = golden.Ints(grids);
  media.row_elements = static_cast<int32_t>(golden.file->Get(pixels)->size(1));
  std::vector<double> mean, std;
  for (const ConfigNode& item : vision.Get("mean").items()) mean.push_back(*item.AsDouble());
  for (const ConfigNode& item : vision.Get("std").items()) std.push_back(*item.AsDouble());
  const int64_t per_channel = media.row_elements / static_cast<int64_t>(mean.size());
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t channel = i % media.row_elements / per_channel;
    const double byte = (values[i] * std[channel] + mean[channel]) * 255;
    OMNI_CHECK_LT(std::abs(byte - std::round(byte)), 1e-3);  // it was a byte
    media.patches.push_back(static_cast<uint8_t>(std::lround(byte)));
  }
  for (size_t i = 0; i + 2 < thw.size(); i += 3) {
    media.items.push_back({.t = thw[i], .h = thw[i + 1], .w = thw[i + 2]});
  }
  return media;
}

// Items in the order in which their placeholders stand in the text.
class VisionPacker {
 public:
  VisionPacker(const trainer::MultimodalModel& model, MediaPack* pack)
      : encoder_(*model.encoder("vision")), pack_(*pack) {}

  void Place(const Media& media, size_t* next_item, int64_t* rows_left, int32_t token) {
    if (*rows_left == 0) {
      MediaItem item = media.items.at((*next_item)++);
      item.num_input_rows = int64_t{item.t} * item.h * item.w;
      item.num_output_rows = encoder_.NumOutputRows(item);
      item.input_row = pack_.num_rows();
      int64_t first = 0;
      for (size_t i = 0; i + 1 < *next_item; ++i) {
        first += int64_t{media.items[i].t} * media.items[i].h * media.items[i].w;
      }
      pack_.row_elements = media.row_elements;
      const auto from = media.patches.begin() + first * media.row_elements;
      pack_.payload.insert(pack_.payload.end(), from,
                           from + item.num_input_rows * media.row_elements);
      pack_.items.push_back(item);
      *rows_left = item.num_output_rows;
    }
    pack_.token_rows.push_back(token);
    --*rows_left;
  }

 private:
  const encoders::Encoder& encoder_;
  MediaPack& pack_;
};

// The mapping that holds the numbers of tokens: the file itself, or the thinker's part of it.
ConfigNode TokenConfig(const ConfigNode& config) {
  const ConfigNode thinker = config.Get("thinker_config");
  return thinker.is_map() ? thinker : config;
}

// image_token_id in some families, image_token_index in others.
int32_t TokenId(const ConfigNode& config, const std::string& kind) {
  const ConfigNode by_id = TokenConfig(config).Get(kind + "_token_id");
  const ConfigNode node = by_id.is_null() ? TokenConfig(config).Get(kind + "_token_index") : by_id;
  return static_cast<int32_t>(*node.AsInt());
}

void PackVision(FamilyCase* golden, const trainer::MultimodalModel& model, const ConfigNode& vision,
                const ConfigNode& config) {
  const Media pictures = ReadVision(*golden, vision, "pixel_values", "image_grid_thw");
  const Media clips = ReadVision(*golden, vision, "pixel_values_videos", "video_grid_thw");
  const int32_t picture_token = TokenId(config, "image"), clip_token = TokenId(config, "video");
  MediaPack& pack = golden->media["vision"];
  VisionPacker packer(model, &pack);
  size_t next_picture = 0, next_clip = 0;
  int64_t picture_rows = 0, clip_rows = 0;
  for (int32_t t = 0; t < golden->tokens.num_tokens(); ++t) {
    const int32_t token = golden->tokens.token_ids[t];
    if (token == picture_token) packer.Place(pictures, &next_picture, &picture_rows, t);
    if (token == clip_token) packer.Place(clips, &next_clip, &clip_rows, t);
  }
  OMNI_CHECK_EQ(next_picture, pictures.items.size());
  OMNI_CHECK_EQ(next_clip, clips.items.size());
}

void PackAudio(FamilyCase* golden, const trainer::MultimodalModel& model,
               const ConfigNode& config) {
  MediaPack& pack = golden->media["audio"];
  const TensorView features = *golden->file->Get("input_features");
  pack.dtype = DType::kFloat32;
  pack.row_elements = static_cast<int32_t>(features.size(1));
  const auto* bytes = static_cast<const uint8_t*>(features.data);
  const int64_t row_bytes = pack.row_elements * SizeOf(DType::kFloat32);
  // Either the valid frames of all sounds, or a whole window each, of which the tower wants the
  // frames and the few behind them that it can see.
  const encoders::InputGeometry geometry = model.encoder("audio")->geometry();
  int64_t from = 0;
  for (const int32_t frames : golden->Ints("feature_lengths")) {
    MediaItem item{.t = frames, .input_row = pack.num_rows(), .num_input_rows = frames};
    if (geometry.mel_context > 0) {
      item.num_input_rows = std::min(frames + geometry.mel_context, geometry.mel_window);
    }
    item.num_output_rows = model.encoder("audio")->NumOutputRows(item);
    pack.payload.insert(pack.payload.end(), bytes + from * row_bytes,
                        bytes + (from + item.num_input_rows) * row_bytes);
    from += geometry.mel_context > 0 ? geometry.mel_window : frames;
    pack.items.push_back(item);
  }
  OMNI_CHECK_EQ(from, features.size(0));
  const int32_t audio_token = TokenId(config, "audio");
  for (int32_t t = 0; t < golden->tokens.num_tokens(); ++t) {
    if (golden->tokens.token_ids[t] == audio_token) pack.token_rows.push_back(t);
  }
}

}  // namespace

std::string FamilyFolder(const std::string& family) {
  return std::string(OMNI_SOURCE_DIR) + "/tests/golden/families/" + family;
}

std::unique_ptr<trainer::PretrainedModel> OpenFamily(const std::string& family) {
  auto pretrained = trainer::PretrainedModel::Open(FamilyFolder(family));
  OMNI_CHECK_OK(pretrained.status());
  return *std::move(pretrained);
}

std::unique_ptr<ModelHarness> LoadFamily(const trainer::PretrainedModel& pretrained,
                                         const std::vector<std::string>& overrides) {
  auto section = ConfigNode::Parse(pretrained.family().model_yaml, "model.yaml");
  OMNI_CHECK_OK(section.status());
  OMNI_CHECK_OK(section->ApplyOverrides(overrides));
  auto harness = std::make_unique<ModelHarness>(section->DumpYaml(), DType::kFloat32);
  const auto without = pretrained.family().tensors.Match(harness->model().Parameters());
  OMNI_CHECK_OK(without.status());
  OMNI_CHECK(without->empty());
  for (const parallel::ParameterSpec& spec : harness->model().Parameters()) {
    std::vector<double> values(spec.num_elements());
    OMNI_CHECK_OK(pretrained.Read(
        {.name = spec.path,
         .shape = spec.shape,
         .data = TensorView::Dense(values.data(), DType::kFloat64, DeviceKind::kCpu, spec.shape)}));
    harness->Set(spec.path, values);
  }
  return harness;
}

std::vector<double> FamilyCase::Floats(const std::string& name) const {
  const auto view = file->Get(name);
  OMNI_CHECK_OK(view.status());
  const float* data = view->ptr<const float>();
  return {data, data + view->num_elements()};
}

std::vector<int32_t> FamilyCase::Ints(const std::string& name) const {
  const auto view = file->Get(name);
  OMNI_CHECK_OK(view.status());
  const int32_t* data = view->ptr<const int32_t>();
  return {data, data + view->num_elements()};
}

FamilyCase LoadFamilyCase(const std::string& family, const std::string& name,
                          const trainer::MultimodalModel& model, const ConfigNode& config) {
  auto file = SafetensorsFile::Open(
      absl::StrCat(FamilyFolder(family), name == "train20" ? "/" : "/case_", name, ".safetensors"));
  OMNI_CHECK_OK(file.status());
  FamilyCase golden{*std::move(file), {}, {}, 0.0};
  golden.tokens.token_ids = golden.Ints("input_ids");
  golden.tokens.cu_seqlens = golden.Ints("cu_seqlens");
  golden.tokens.targets = golden.Ints("targets");
  const std::vector<int32_t> positions = golden.Ints("position_ids");
  const size_t num_tokens = golden.tokens.token_ids.size();
  for (size_t i = 0; i < 3 * num_tokens; ++i) {  // one row serves all axes
    golden.tokens.positions.push_back(static_cast<float>(positions[i % positions.size()]));
  }
  golden.scale = 1.0 / static_cast<double>(std::count_if(golden.tokens.targets.begin(),
                                                         golden.tokens.targets.end(),
                                                         [](int32_t t) { return t >= 0; }));
  if (golden.Has("pixel_values") || golden.Has("pixel_values_videos")) {
    const ConfigNode section = *ConfigNode::Parse(OpenFamily(family)->family().model_yaml, family);
    PackVision(&golden, model, section.Get("encoders").Get("vision"), config);
  }
  if (golden.Has("input_features")) PackAudio(&golden, model, config);
  return golden;
}

Packs Select(const FamilyCase& golden, absl::Span<const int32_t> samples) {
  Packs packs;
  packs.tokens.cu_seqlens = {0};
  const int64_t num_tokens = golden.tokens.num_tokens();
  std::vector<float> positions[3];
  for (const int32_t sample : samples) {
    const int32_t begin = golden.tokens.cu_seqlens[sample];
    const int32_t end = golden.tokens.cu_seqlens[sample + 1];
    const auto shift = static_cast<int32_t>(packs.tokens.num_tokens()) - begin;
    const auto append = [&](const auto& from, int64_t offset, auto* to) {
      to->insert(to->end(), from.begin() + offset + begin, from.begin() + offset + end);
    };
    append(golden.tokens.token_ids, 0, &packs.tokens.token_ids);
    append(golden.tokens.targets, 0, &packs.tokens.targets);
    for (int axis = 0; axis < 3; ++axis) {
      append(golden.tokens.positions, axis * num_tokens, &positions[axis]);
    }
    packs.tokens.cu_seqlens.push_back(end + shift);
    for (const auto& [name, pack] : golden.media) {
      MediaPack& into = packs.media[name];
      into.dtype = pack.dtype;
      into.row_elements = pack.row_elements;
      const int64_t row_bytes = pack.row_elements * SizeOf(pack.dtype);
      int64_t token_row = 0;
      for (MediaItem item : pack.items) {
        const auto rows = pack.token_rows.begin() + token_row;
        token_row += item.num_output_rows;
        if (*rows < begin || *rows >= end) continue;
        const auto bytes = pack.payload.begin() + item.input_row * row_bytes;
        item.input_row = into.num_rows();
        into.payload.insert(into.payload.end(), bytes, bytes + item.num_input_rows * row_bytes);
        into.items.push_back(item);
        for (int64_t i = 0; i < item.num_output_rows; ++i) {
          into.token_rows.push_back(rows[i] + shift);
        }
      }
    }
  }
  for (const auto& axis : positions) {
    packs.tokens.positions.insert(packs.tokens.positions.end(), axis.begin(), axis.end());
  }
  return packs;
}

std::map<std::string, std::vector<double>> ByTheirNames(
    const trainer::TensorMap& map, const std::map<std::string, std::vector<double>>& by_path) {
  std::map<std::string, std::vector<double>> by_name;
  for (const trainer::MappedTensor& tensor : map.tensors()) {
    const auto found = by_path.find(tensor.path);
    if (found == by_path.end()) continue;
    std::vector<double>& values = by_name[tensor.name];
    values.resize(tensor.num_elements());
    trainer::ToTheirLayout(tensor, sizeof(double), found->second.data() + tensor.begin,
                           values.data());
  }
  return by_name;
}

}  // namespace omni::testing
