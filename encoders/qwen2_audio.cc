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

namespace {

int32_t NumSteps(const MediaItem& item) { return (item.t + 1) / 2; }

void CheckRows(const MediaItem& item, int32_t window_frames) {
  OMNI_CHECK_LE(item.t, window_frames);
  const auto rows = item.t == 0 ? 0 : std::min(item.t + Qwen2Audio::kContextFrames, window_frames);
  OMNI_CHECK_EQ(item.num_input_rows, int64_t{rows});
}

// The steps of its sound that a shard goes on with: two a unit, but for the padding's.
parallel::UnitRange OwnSteps(const MediaItem& item, int32_t shard, int32_t num_shards) {
  if (item.num_input_rows == 0) return {};
  const parallel::UnitRange units = Qwen2Audio::kUnit.Units(item, shard, num_shards);
  const int64_t num_steps = NumSteps(item);
  return {std::min(units.begin * WhisperTower::kPool, num_steps),
          std::min(units.end * WhisperTower::kPool, num_steps)};
}

}  // namespace

WindowedAudioLayout MakeWindowedAudioLayout(absl::Span<const MediaItem> items,
                                            int32_t window_frames, int32_t shard,
                                            int32_t num_shards) {
  WindowedAudioLayout layout;
  layout.cu_frames = layout.cu_steps = {0};
  layout.kept_steps.emplace();
  std::vector<int32_t> first_frames;  // of the sound, of those that are here
  for (const MediaItem& item : items) {
    CheckRows(item, window_frames);
    const parallel::UnitRange rows = item.num_input_rows == 0
                                         ? parallel::UnitRange{}
                                         : Qwen2Audio::kUnit.InputRows(item, shard, num_shards);
    first_frames.push_back(static_cast<int32_t>(rows.begin));
    layout.cu_frames.push_back(layout.cu_frames.back() + static_cast<int32_t>(rows.size()));
  }
  const std::vector<int32_t> cu_all = WhisperTower::Steps(layout.cu_frames);
  for (size_t i = 0; i < items.size(); ++i) {
    const parallel::UnitRange own = OwnSteps(items[i], shard, num_shards);
    for (int64_t step = own.begin; step < own.end; ++step) {
      // Frames begin at an even one, so that steps of a shard are steps of the sound.
      layout.positions.push_back(static_cast<int32_t>(step));
      layout.kept_steps->push_back(cu_all[i] + layout.positions.back() - first_frames[i] / 2);
    }
    layout.cu_steps.push_back(layout.cu_steps.back() + static_cast<int32_t>(own.size()));
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
  const parallel::SampleShard& shard = options.shard;
  int64_t num_rows = 0;  // of all shards
  for (const MediaItem& item : pack.items) num_rows += NumOutputRows(item);
  if (num_rows == 0) return NoRows(ctx, tower_.dtype(), output_hidden_);
  const WindowedAudioLayout layout = MakeWindowedAudioLayout(pack.items, config_.window_frames(),
                                                             shard.index(), shard.num_shards());
  const auto num_steps = static_cast<int64_t>(layout.positions.size());
  const Var positions_SH =
      Embedding(ctx, UploadNew<int32_t>(ctx, layout.positions, {num_steps}), position_embed_);
  return {.rows_RH = tower_.Forward(ctx, pack, layout, positions_SH,
                                    Attention(pack.items, layout, shard), options.recompute)};
}

SegmentAttention Qwen2Audio::Attention(absl::Span<const MediaItem> items,
                                       const WindowedAudioLayout& layout,
                                       const parallel::SampleShard& shard) const {
  if (shard.is_whole()) return SegmentAttention(layout.cu_steps);
  SplitRows rows{.shard = shard, .of_rank = {}};
  rows.of_rank.resize(shard.num_shards());
  std::vector<int32_t> cu_steps = {0};  // of whole sounds
  for (const MediaItem& item : items) {
    for (int32_t other = 0; other < shard.num_shards(); ++other) {
      const parallel::UnitRange own = OwnSteps(item, other, shard.num_shards());
      rows.of_rank[other].push_back({cu_steps.back() + own.begin, cu_steps.back() + own.end});
    }
    cu_steps.push_back(cu_steps.back() + NumSteps(item));
  }
  return SegmentAttention(rows, cu_steps, {});
}

FlopCount Qwen2Audio::Flops(absl::Span<const MediaItem> items) const {
  FlopCounter counter(/*input_wants_grad=*/false);
  tower_.CountFlops(MakeWindowedAudioLayout(items, config_.window_frames()), &counter);
  return counter.count();
}

}  // namespace omni::encoders
