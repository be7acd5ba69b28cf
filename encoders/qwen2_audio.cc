#include "encoders/qwen2_audio.h"

#include <algorithm>

#include "runtime/base/status.h"
#include "runtime/ops/ops.h"

namespace omni::encoders {

using parallel::MediaItem;
using parallel::MediaPack;

absl::Status Read(const ConfigNode& node, Qwen2AudioConfig* out) {
  ConfigReader reader(node);
  reader.Child("kind");
  ReadWhisperTower(reader, out);
  reader.Read("max_positions", &out->max_positions, Between(1, 1 << 20));
  OMNI_RETURN_IF_ERROR(reader.Finish());
  return CheckWhisperTower(reader, *out);
}

WhisperTower::Layout MakeWindowedAudioLayout(absl::Span<const MediaItem> items,
                                             int32_t window_frames) {
  WhisperTower::Layout layout{.cu_frames = {0}, .cu_steps = {0}};
  for (const MediaItem& item : items) {
    OMNI_CHECK_LE(item.t, window_frames);
    const auto rows =
        item.t == 0 ? 0 : std::min(item.t + Qwen2Audio::kContextFrames, window_frames);
    OMNI_CHECK_EQ(item.num_input_rows, int64_t{rows});
    layout.cu_frames.push_back(layout.cu_frames.back() + rows);
  }
  const std::vector<int32_t> cu_all = WhisperTower::Steps(layout.cu_frames);
  for (size_t i = 0; i < items.size(); ++i) {
    const int32_t num_steps = (items[i].t + 1) / 2;
    for (int32_t step = 0; step < num_steps; ++step) layout.kept_steps.push_back(cu_all[i] + step);
    layout.cu_steps.push_back(layout.cu_steps.back() + num_steps);
  }
  layout.cu_items = layout.cu_steps;
  return layout;
}

absl::StatusOr<std::unique_ptr<Encoder>> Qwen2Audio::Create(const ConfigNode& section,
                                                            const EncoderOptions& options) {
  Qwen2AudioConfig config;
  config.init = options.init;
  OMNI_RETURN_IF_ERROR(Read(section, &config));
  return std::make_unique<Qwen2Audio>(config, options);
}

Qwen2Audio::Qwen2Audio(const Qwen2AudioConfig& config, const EncoderOptions& options)
    : config_(config),
      output_hidden_(options.output_hidden),
      tower_(config, options.output_hidden) {
  list_.Add({.path = options.name + ".position_embed.weight",
             .shape = {config.max_positions, config.hidden},
             .init = parallel::InitKind::kSinusoid,
             .optimizer = parallel::OptimizerClass::kFixed},
            &position_embed_);
  tower_.Declare(options.name, &list_);
}

int64_t Qwen2Audio::NumOutputRows(const MediaItem& item) const {
  return (item.t + 1) / 2 / WhisperTower::kPool;
}

EncoderOutput Qwen2Audio::Encode(ExecContext& ctx, const MediaPack& pack,
                                 const EncodeOptions& options) const {
  OMNI_CHECK(options.shard.is_whole());  // a sound is one attention segment: geometry().unit is 0
  const WhisperTower::Layout layout = MakeWindowedAudioLayout(pack.items, config_.window_frames());
  int64_t num_rows = 0;
  for (const MediaItem& item : pack.items) num_rows += NumOutputRows(item);
  if (num_rows == 0) return NoRows(ctx, tower_.dtype(), output_hidden_);
  std::vector<int32_t> positions;
  for (size_t i = 0; i + 1 < layout.cu_steps.size(); ++i) {
    for (int32_t step = 0; step < layout.cu_steps[i + 1] - layout.cu_steps[i]; ++step) {
      positions.push_back(step);
    }
  }
  const auto num_steps = static_cast<int64_t>(positions.size());
  const Var positions_SH =
      Embedding(ctx, UploadNew<int32_t>(ctx, positions, {num_steps}), position_embed_);
  return {.rows_RH = tower_.Forward(ctx, pack, layout, positions_SH, options.recompute)};
}

FlopCount Qwen2Audio::Flops(absl::Span<const MediaItem> items) const {
  FlopCounter counter(/*input_wants_grad=*/false);
  tower_.CountFlops(MakeWindowedAudioLayout(items, config_.window_frames()), &counter);
  return counter.count();
}

}  // namespace omni::encoders
