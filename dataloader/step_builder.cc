#include "dataloader/step_builder.h"

#include <algorithm>
#include <string>
#include <utility>

#include "dataloader/microbatch_builder.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/base/text.h"

namespace omni::dataloader {

StepBuilder::StepBuilder(const SamplePlanner& planner, StepPlan plan, const LoaderView& view)
    : planner_(planner), rank_(view.rank) {
  const DataConfig& config = planner.config();
  batch_.step = plan.step;
  batch_.layout = LayoutOf(plan, config, view.data, view.costs);
  batch_.global_loss_tokens = batch_.layout.loss_tokens();
  const int32_t replica = view.data.Replica(rank_);
  const bool tells_faults = view.data.RankAt(0, replica, 0) == rank_;
  const auto num_lanes = static_cast<int32_t>(plan.lanes.size());
  batch_.drawn.resize(planner.sources().size());
  for (const OpenedSource& source : planner.sources()) batch_.source_names.push_back(source.name);
  std::vector<std::vector<PlacedSample>> placed(batch_.layout.num_microbatches);
  for (int32_t lane = 0; lane < num_lanes; ++lane) {
    const bool is_local = lane % view.data.replicas == replica;
    for (size_t s = 0; s < plan.lanes[lane].size(); ++s) {
      const auto& sample = plan.lanes[lane][s];
      const SampleCounts counts = CountsOf(*sample, config);
      batch_.global += counts;
      ++batch_.drawn[sample->key.source];
      if (!sample->tokenized.media.empty()) {
        batch_.placed_media.push_back({.lane = lane,
                                       .sample = static_cast<int32_t>(s),
                                       .source = sample->key.source,
                                       .sample_id = Printable(sample->sample_id),
                                       .counts = counts});
      }
      if (!is_local) continue;
      batch_.local += counts;
      placed[lane / view.data.replicas / config.micro_batch_sequences].push_back(
          {sample, lane, static_cast<int32_t>(s)});
    }
    for (FaultEvent& fault : plan.faults[lane]) {
      if (fault.fault != SampleFault::kCut) {  // else it is drawn when its turn comes
        const auto source =
            std::find(batch_.source_names.begin(), batch_.source_names.end(), fault.source);
        ++batch_.drawn[source - batch_.source_names.begin()];
      }
      if (is_local && tells_faults) batch_.faults.push_back(fault);
      batch_.left_out.push_back(std::move(fault));
    }
  }
  for (const std::vector<PlacedSample>& samples : placed) {
    batch_.microbatches.push_back(LayTokens(samples, config));
    batch_.local_loss_tokens += batch_.microbatches.back().loss_tokens;
  }
  LayMedia(plan);
  batch_.state_after = std::move(plan.state_after);
}

void StepBuilder::LayMedia(const StepPlan& plan) {
  const DataConfig& config = planner_.config();
  const parallel::StepLayout& layout = batch_.layout;
  for (const parallel::StepLayout::Encoder& encoder : layout.encoders) {
    const MediaKind kind =
        encoder.name == config.audio_encoder ? MediaKind::kAudio : MediaKind::kImage;
    encodes_.emplace_back();
    for (int32_t group = 0; group < layout.num_groups(); ++group) {
      encodes_.back().push_back(std::make_unique<Encode>(
          Encode{PackBuilder(kind, config), PackBuilder(kind, config), {}, {}}));
    }
  }
  size_t next = 0;  // item: they run as the layout made them
  const auto num_lanes = static_cast<int32_t>(plan.lanes.size());
  for (int32_t replica = 0; replica < layout.num_replicas; ++replica) {
    int32_t microbatch = 0;
    int64_t offset = 0;  // of the sample in its microbatch
    for (int32_t lane = replica; lane < num_lanes; lane += layout.num_replicas) {
      const int32_t index = lane / layout.num_replicas / config.micro_batch_sequences;
      if (index != std::exchange(microbatch, index)) offset = 0;
      for (size_t s = 0; s < plan.lanes[lane].size(); ++s) {
        const std::shared_ptr<const SamplePlan>& sample = plan.lanes[lane][s];
        MediaTask task{.plan = sample, .places = {}, .failure = {}};
        for (size_t span = 0; span < sample->tokenized.media.size(); ++span, ++next) {
          const parallel::StepLayout::Item& item = layout.items[next];
          if (!item.IsEncodedBy(rank_)) continue;
          Encode& encode = *encodes_[item.encoder][item.group];
          PackBuilder& pack = item.num_shards > 1 ? encode.shard : encode.whole;
          (item.num_shards > 1 ? encode.shard_items : encode.whole_items)
              .push_back(static_cast<int32_t>(next));
          const int64_t place =
              pack.Append(sample->tokenized.media[span], offset, layout.InputRows(item, rank_),
                          layout.OutputRows(item, rank_));
          task.places.push_back({&pack, place, static_cast<int32_t>(span)});
        }
        if (!task.places.empty()) {
          tasks_.push_back(std::move(task));
          task_samples_.push_back({.lane = lane, .sample = static_cast<int32_t>(s)});
        }
        offset += sample->num_tokens();
      }
    }
  }
  OMNI_CHECK_EQ(next, layout.items.size());
}

int64_t StepBuilder::payload_bytes() const {
  int64_t bytes = 0;
  for (const auto& groups : encodes_) {
    for (const auto& encode : groups) {
      bytes += encode->whole.payload_bytes() + encode->shard.payload_bytes();
    }
  }
  return bytes;
}

void StepBuilder::Allocate(PayloadBuffers& buffers) {
  buffers.Limit(payload_bytes());
  for (const auto& groups : encodes_) {
    for (const auto& encode : groups) {
      encode->whole.Allocate(buffers);
      encode->shard.Allocate(buffers);
    }
  }
}

absl::Status StepBuilder::Fill(size_t task, const MediaDecoder& decoder) {
  return dataloader::Fill(planner_, decoder, {.augment = true}, &tasks_[task]);
}

StepBatch StepBuilder::Finish() {
  for (const auto& groups : encodes_) {
    batch_.encodes.emplace_back();
    for (const auto& encode : groups) {
      batch_.encodes.back().push_back({.whole = encode->whole.Take(),
                                       .shard = encode->shard.Take(),
                                       .whole_items = std::move(encode->whole_items),
                                       .shard_items = std::move(encode->shard_items)});
    }
  }
  for (size_t i = 0; i < tasks_.size(); ++i) {
    if (tasks_[i].failure.ok()) continue;
    const SamplePlan& plan = *tasks_[i].plan;
    task_samples_[i].message = Printable(tasks_[i].failure.message());
    batch_.failed.push_back(task_samples_[i]);
    batch_.faults.push_back({SampleFault::kBlanked, planner_.sources()[plan.key.source].name,
                             Printable(plan.sample_id), task_samples_[i].message,
                             task_samples_[i].lane, task_samples_[i].sample});
  }
  ApplyFailures({batch_.failed}, /*rank=*/0, &batch_);
  return std::move(batch_);
}

}  // namespace omni::dataloader
