#include "dataloader/batch.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "dataloader/microbatch_builder.h"
#include "runtime/base/check.h"

namespace omni::dataloader {
namespace {

const std::string& EncoderOf(MediaKind kind, const DataConfig& config) {
  return kind == MediaKind::kAudio ? config.audio_encoder : config.vision_encoder;
}

int32_t EncoderIndex(const parallel::DataLayout& data, const std::string& name) {
  const auto found = std::find_if(data.encoders.begin(), data.encoders.end(),
                                  [&](const auto& encoder) { return encoder.name == name; });
  OMNI_CHECK(found != data.encoders.end());
  return static_cast<int32_t>(found - data.encoders.begin());
}

void Zero(const parallel::StepLayout& layout, const SampleFailure& failure,
          const std::vector<int32_t>& items, bool is_split, int32_t rank,
          parallel::MediaPack* pack) {
  const int64_t row_bytes = pack->row_elements * SizeOf(pack->dtype);
  for (size_t i = 0; i < items.size(); ++i) {
    const parallel::StepLayout::Item& item = layout.items[items[i]];
    if (item.lane != failure.lane || item.sample != failure.sample) continue;
    OMNI_CHECK_EQ(item.num_shards > 1, is_split);
    std::memset(pack->payload.data() + pack->items[i].input_row * row_bytes, 0,
                layout.InputRows(item, rank).size() * row_bytes);
  }
}

// Once for each sample, however many ranks could not decode it.
void TakeFromCounts(const SampleFailure& failure, bool is_local, StepBatch* batch) {
  for (PlacedMedia& placed : batch->placed_media) {
    if (placed.lane != failure.lane || placed.sample != failure.sample) continue;
    if (std::exchange(placed.is_blanked, true)) return;
    SampleCounts lost = placed.counts;
    lost.tokens = 0;
    batch->global -= lost;
    if (is_local) batch->local -= lost;
    batch->global_loss_tokens -= lost.loss_tokens;
    batch->blanked.push_back({.fault = SampleFault::kBlanked,
                              .source = batch->source_names[placed.source],
                              .sample_id = placed.sample_id,
                              .message = failure.message,
                              .lane = failure.lane,
                              .sample = failure.sample});
    return;
  }
}

}  // namespace

SampleCounts& SampleCounts::operator+=(const SampleCounts& other) {
  samples += other.samples;
  text += other.text;
  image += other.image;
  audio += other.audio;
  video += other.video;
  tokens += other.tokens;
  loss_tokens += other.loss_tokens;
  for (const auto& [name, rows] : other.input_rows) input_rows[name] += rows;
  for (const auto& [name, count] : other.items) items[name] += count;
  return *this;
}

SampleCounts& SampleCounts::operator-=(const SampleCounts& other) {
  samples -= other.samples;
  text -= other.text;
  image -= other.image;
  audio -= other.audio;
  video -= other.video;
  tokens -= other.tokens;
  loss_tokens -= other.loss_tokens;
  for (const auto& [name, rows] : other.input_rows) input_rows[name] -= rows;
  for (const auto& [name, count] : other.items) items[name] -= count;
  return *this;
}

SampleCounts CountsOf(const SamplePlan& plan, const DataConfig& config) {
  SampleCounts counts{.samples = 1, .tokens = plan.num_tokens(), .loss_tokens = plan.loss_tokens};
  for (const MediaSpan& media : plan.tokenized.media) {
    const MediaKind kind = media.shape.kind;
    (kind == MediaKind::kImage   ? counts.image
     : kind == MediaKind::kAudio ? counts.audio
                                 : counts.video) = 1;
    const std::string& encoder = EncoderOf(kind, config);
    counts.input_rows[encoder] += media.shape.item.num_input_rows;
    ++counts.items[encoder];
  }
  counts.text = plan.tokenized.media.empty();
  return counts;
}

parallel::DataLayout NameEncoders(parallel::DataLayout data, const DataConfig& config) {
  for (const std::string& name : {config.vision_encoder, config.audio_encoder}) {
    const bool is_named = std::any_of(data.encoders.begin(), data.encoders.end(),
                                      [&](const auto& encoder) { return encoder.name == name; });
    if (!is_named) data.encoders.push_back({.name = name});
  }
  return data;
}

parallel::StepLayout LayoutOf(const StepPlan& plan, const DataConfig& config,
                              const parallel::DataLayout& data,
                              const parallel::EncodeCosts& costs) {
  parallel::StepLayout layout;
  layout.step = plan.step;
  layout.num_replicas = data.replicas;
  layout.group_size = data.group_size;
  const auto num_lanes = static_cast<int32_t>(plan.lanes.size());
  const int32_t lanes_each = (num_lanes + data.replicas - 1) / data.replicas;
  layout.num_microbatches =
      (lanes_each + config.micro_batch_sequences - 1) / config.micro_batch_sequences;
  for (const parallel::DataLayout::Encoder& encoder : data.encoders) {
    layout.encoders.push_back({encoder.name, encoder.unit});
  }
  const int32_t vision = EncoderIndex(data, config.vision_encoder);
  const int32_t audio = EncoderIndex(data, config.audio_encoder);
  layout.microbatches.resize(int64_t{data.replicas} * layout.num_microbatches);
  std::vector<parallel::ItemCost> item_costs;
  for (int32_t replica = 0; replica < data.replicas; ++replica) {
    for (int32_t lane = replica; lane < num_lanes; lane += data.replicas) {
      const int32_t index = lane / data.replicas / config.micro_batch_sequences;
      auto& microbatch = layout.microbatches[replica * layout.num_microbatches + index];
      int64_t offset = microbatch.tokens();
      for (size_t s = 0; s < plan.lanes[lane].size(); ++s) {
        const SamplePlan& sample = *plan.lanes[lane][s];
        for (const MediaSpan& media : sample.tokenized.media) {
          const parallel::MediaItem& item = media.shape.item;
          int64_t first_row = 0;
          for (const int64_t run_begin : media.run_begins) {
            layout.routes.push_back({.item = static_cast<int32_t>(layout.items.size()),
                                     .first_row = first_row,
                                     .num_rows = media.run_rows(),
                                     .position = offset + run_begin});
            first_row += media.run_rows();
          }
          const int32_t encoder = media.shape.kind == MediaKind::kAudio ? audio : vision;
          layout.items.push_back({.encoder = encoder,
                                  .group = index / data.group_size,
                                  .replica = replica,
                                  .microbatch = index,
                                  .lane = lane,
                                  .sample = static_cast<int32_t>(s),
                                  .input_rows = item.num_input_rows,
                                  .output_rows = item.num_output_rows});
          item_costs.push_back(CostOf(costs, encoder, item));
        }
        microbatch.documents.push_back(static_cast<int32_t>(sample.num_tokens()));
        microbatch.loss_tokens += sample.loss_tokens;
        offset += sample.num_tokens();
      }
    }
  }
  parallel::DealItems(data, item_costs, &layout);
  return layout;
}

void ApplyFailures(const std::vector<std::vector<SampleFailure>>& by_rank, int32_t rank,
                   StepBatch* batch) {
  for (const std::vector<SampleFailure>& failures : by_rank) {
    for (const SampleFailure& failure : failures) {
      bool is_local = false;
      for (Microbatch& microbatch : batch->microbatches) {
        for (SampleRef& sample : microbatch.samples) {
          if (sample.lane != failure.lane || sample.sample != failure.sample) continue;
          batch->local_loss_tokens -= Blank(&sample, &microbatch);
          is_local = true;
        }
      }
      TakeFromCounts(failure, is_local, batch);
      for (std::vector<EncodeBatch>& groups : batch->encodes) {
        for (EncodeBatch& encode : groups) {
          Zero(batch->layout, failure, encode.whole_items, false, rank, &encode.whole);
          Zero(batch->layout, failure, encode.shard_items, true, rank, &encode.shard);
        }
      }
    }
  }
  // Ranks apply their own failures first: the same order on all.
  std::sort(batch->blanked.begin(), batch->blanked.end(), [](const auto& a, const auto& b) {
    return std::pair(a.lane, a.sample) < std::pair(b.lane, b.sample);
  });
  const auto is_told = [&](const FaultEvent& fault) {
    const SampleFailure failure{.lane = fault.lane, .sample = fault.sample};
    return fault.fault == SampleFault::kBlanked &&
           std::any_of(by_rank.begin(), by_rank.begin() + rank, [&](const auto& failures) {
             return std::find(failures.begin(), failures.end(), failure) != failures.end();
           });
  };
  batch->faults.erase(std::remove_if(batch->faults.begin(), batch->faults.end(), is_told),
                      batch->faults.end());
}

void MoveMediaIntoMicrobatches(StepBatch* batch) {
  OMNI_CHECK_EQ(batch->layout.group_size, 1);
  for (size_t e = 0; e < batch->encodes.size(); ++e) {
    OMNI_CHECK_EQ(batch->encodes[e].size(), batch->microbatches.size());
    for (size_t i = 0; i < batch->microbatches.size(); ++i) {
      EncodeBatch& encode = batch->encodes[e][i];
      OMNI_CHECK(encode.shard_items.empty());
      batch->microbatches[i].media[batch->layout.encoders[e].name] = std::move(encode.whole);
    }
  }
  batch->encodes.clear();
}

}  // namespace omni::dataloader
