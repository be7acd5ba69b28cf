#include "dataloader/microbatch_builder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dataloader/chat_template.h"
#include "runtime/base/status.h"
#include "runtime/base/text.h"

namespace omni::dataloader {

Microbatch LayTokens(const std::vector<PlacedSample>& samples, const DataConfig& config) {
  Microbatch microbatch;
  parallel::TokenPack& tokens = microbatch.tokens;
  int64_t total = 0;
  for (const PlacedSample& placed : samples) total += placed.plan->num_tokens();
  tokens.token_ids.resize(total);
  tokens.targets.resize(total, -1);
  tokens.positions.resize(3 * total);
  tokens.cu_seqlens = {0};
  tokens.cu_lanes = {0};
  int64_t offset = 0;
  for (size_t i = 0; i < samples.size(); ++i) {
    const PlacedSample& placed = samples[i];
    const SamplePlan& plan = *placed.plan;
    if (i > 0 && placed.lane != samples[i - 1].lane) {
      tokens.cu_lanes.push_back(static_cast<int32_t>(offset));
    }
    WriteTokens(plan.tokenized, config.positions, true, offset, &tokens);
    microbatch.samples.push_back({.source = plan.key.source,
                                  .index = plan.key.index,
                                  .lane = placed.lane,
                                  .sample = placed.sample,
                                  .token_begin = offset,
                                  .token_end = offset + plan.num_tokens(),
                                  .loss_tokens = plan.loss_tokens,
                                  .sample_id = plan.sample_id,
                                  .group = plan.group});
    microbatch.loss_tokens += plan.loss_tokens;
    offset += plan.num_tokens();
    tokens.cu_seqlens.push_back(static_cast<int32_t>(offset));
  }
  if (!samples.empty()) tokens.cu_lanes.push_back(static_cast<int32_t>(offset));
  return microbatch;
}

int64_t Blank(SampleRef* sample, Microbatch* microbatch) {
  const auto targets = microbatch->tokens.targets.begin();
  std::fill(targets + sample->token_begin, targets + sample->token_end, -1);
  const int64_t lost = sample->loss_tokens;
  microbatch->loss_tokens -= lost;
  sample->loss_tokens = 0;
  sample->is_blanked = true;
  return lost;
}

MicrobatchBuilder::MicrobatchBuilder(const SamplePlanner& planner,
                                     const std::vector<PlacedSample>& samples)
    : planner_(planner),
      microbatch_(LayTokens(samples, planner.config())),
      vision_(MediaKind::kImage, planner.config()),
      audio_(MediaKind::kAudio, planner.config()) {
  for (size_t i = 0; i < samples.size(); ++i) {
    tasks_.push_back({.plan = samples[i].plan, .places = {}, .failure = {}});
    const std::vector<MediaSpan>& media = samples[i].plan->tokenized.media;
    for (size_t span = 0; span < media.size(); ++span) {
      const parallel::MediaItem& item = media[span].shape.item;
      PackBuilder& pack = media[span].shape.kind == MediaKind::kAudio ? audio_ : vision_;
      const int64_t place = pack.Append(media[span], microbatch_.samples[i].token_begin,
                                        {0, item.num_input_rows}, {0, item.num_output_rows});
      tasks_.back().places.push_back({&pack, place, static_cast<int32_t>(span)});
    }
  }
  vision_.Allocate();
  audio_.Allocate();
}

absl::Status MicrobatchBuilder::Fill(int64_t index, const MediaDecoder& decoder,
                                     const FillOptions& options) {
  return dataloader::Fill(planner_, decoder, options, &tasks_[index]);
}

Microbatch MicrobatchBuilder::Finish(std::vector<FaultEvent>* faults) {
  for (size_t i = 0; i < tasks_.size(); ++i) {
    if (tasks_[i].failure.ok()) continue;
    SampleRef& sample = microbatch_.samples[i];
    Blank(&sample, &microbatch_);
    faults->push_back({SampleFault::kBlanked, planner_.sources()[sample.source].name,
                       Printable(sample.sample_id), Printable(tasks_[i].failure.message())});
  }
  microbatch_.media[planner_.config().vision_encoder] = vision_.Take();
  microbatch_.media[planner_.config().audio_encoder] = audio_.Take();
  return std::move(microbatch_);
}

absl::StatusOr<Microbatch> DecodeSample(const SamplePlanner& planner, const MediaDecoder& decoder,
                                        std::shared_ptr<const SamplePlan> plan) {
  MicrobatchBuilder builder(planner, {{.plan = std::move(plan)}});
  OMNI_RETURN_IF_ERROR(builder.Fill(0, decoder, {}));
  std::vector<FaultEvent> faults;
  Microbatch microbatch = builder.Finish(&faults);
  if (faults.empty()) return microbatch;
  return absl::DataLossError(absl::StrCat(faults[0].sample_id, ": ", faults[0].message));
}

}  // namespace omni::dataloader
