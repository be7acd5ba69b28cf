#include "dataloader/batch.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "dataloader/media_decoder.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

const std::string& EncoderOf(MediaKind kind, const DataConfig& config) {
  return kind == MediaKind::kAudio ? config.audio_encoder : config.vision_encoder;
}

parallel::MediaPack EmptyPack(bool is_audio, const DataConfig& config) {
  parallel::MediaPack pack;
  pack.dtype = is_audio ? DType::kFloat32 : DType::kUInt8;
  pack.row_elements = is_audio ? config.audio.mel_bands : config.image.geometry.row_elements();
  return pack;
}

// "cat.jpg: corrupt JPEG", as the sample names the medium: looked up only now that it is broken.
absl::Status NameMedium(const absl::Status& status, const SampleStore& store,
                        const SamplePlan& plan, int32_t span) {
  const int64_t index = plan.media_key.index;
  if (absl::StartsWith(status.message(), store.sample_id(index))) return status;  // the store's
  const auto media_index = static_cast<size_t>(plan.tokenized.media[span].media_index);
  const absl::StatusOr<Conversation> conversation = store.LoadConversation(index);
  std::string name;
  if (conversation.ok() && media_index < conversation->media().size()) {
    name = conversation->media()[media_index]->text;
  }
  return Annotate(status, name.empty() ? absl::StrCat("medium ", media_index) : name);
}

// Bytes of an item's rows in the payload.
int64_t RowBytes(const parallel::MediaPack& pack) { return pack.row_elements * SizeOf(pack.dtype); }

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

parallel::StepLayout LayoutOf(const StepPlan& plan, const DataConfig& config, int32_t world) {
  parallel::StepLayout layout;
  layout.step = plan.step;
  layout.num_replicas = world;
  const auto num_lanes = static_cast<int32_t>(plan.lanes.size());
  const int32_t lanes_per_rank = (num_lanes + world - 1) / world;
  layout.num_microbatches =
      (lanes_per_rank + config.micro_batch_sequences - 1) / config.micro_batch_sequences;
  layout.encoders = {config.vision_encoder, config.audio_encoder};
  layout.microbatches.resize(int64_t{world} * layout.num_microbatches);
  for (int32_t rank = 0; rank < world; ++rank) {
    for (int32_t lane = rank; lane < num_lanes; lane += world) {
      const int32_t index = lane / world / config.micro_batch_sequences;
      auto& microbatch = layout.microbatches[rank * layout.num_microbatches + index];
      for (const auto& sample : plan.lanes[lane]) {
        for (const MediaSpan& media : sample->tokenized.media) {
          const parallel::MediaItem& item = media.shape.item;
          int64_t first_row = 0;
          for (const int64_t run_begin : media.run_begins) {
            layout.routes.push_back({.item = static_cast<int32_t>(layout.items.size()),
                                     .replica = rank,
                                     .microbatch = index,
                                     .first_row = first_row,
                                     .num_rows = media.run_rows(),
                                     .position = microbatch.tokens + run_begin});
            first_row += media.run_rows();
          }
          layout.items.push_back({.encoder = media.shape.kind == MediaKind::kAudio ? 1 : 0,
                                  .encoder_rank = rank,
                                  .input_rows = item.num_input_rows,
                                  .output_rows = item.num_output_rows});
        }
        microbatch.tokens += sample->num_tokens();
        microbatch.loss_tokens += sample->loss_tokens;
      }
    }
  }
  return layout;
}

MicrobatchBuilder::MicrobatchBuilder(const SamplePlanner& planner, std::vector<Placed> samples)
    : planner_(planner), placed_(std::move(samples)), failures_(placed_.size()) {
  const DataConfig& config = planner_.config();
  microbatch_.media[config.vision_encoder] = EmptyPack(false, config);
  microbatch_.media[config.audio_encoder] = EmptyPack(true, config);
  parallel::TokenPack& tokens = microbatch_.tokens;
  int64_t total = 0;
  for (const Placed& placed : placed_) total += placed.plan->num_tokens();
  tokens.token_ids.resize(total);
  tokens.targets.resize(total, -1);
  tokens.positions.resize(3 * total);
  tokens.cu_seqlens = {0};
  tokens.cu_lanes = {0};
  int64_t offset = 0;
  for (size_t i = 0; i < placed_.size(); ++i) {
    const Placed& placed = placed_[i];
    const SamplePlan& plan = *placed.plan;
    if (i > 0 && placed.lane != placed_[i - 1].lane) {
      tokens.cu_lanes.push_back(static_cast<int32_t>(offset));
    }
    WriteTokens(plan.tokenized, config.positions, true, offset, &tokens);
    places_.emplace_back();
    for (const MediaSpan& media : plan.tokenized.media) {
      parallel::MediaPack& pack = microbatch_.media[EncoderOf(media.shape.kind, config)];
      places_.back().push_back({&pack, static_cast<int64_t>(pack.items.size())});
      parallel::MediaItem item = media.shape.item;
      item.input_row =
          pack.items.empty() ? 0 : pack.items.back().input_row + pack.items.back().num_input_rows;
      pack.items.push_back(item);
      for (const int64_t run_begin : media.run_begins) {
        for (int64_t row = 0; row < media.run_rows(); ++row) {
          pack.token_rows.push_back(static_cast<int32_t>(offset + run_begin + row));
        }
      }
      payload_bytes_[&pack] += item.num_input_rows * RowBytes(pack);
    }
    microbatch_.samples.push_back({.source = plan.key.source,
                                   .index = plan.key.index,
                                   .lane = placed.lane,
                                   .token_begin = offset,
                                   .token_end = offset + plan.num_tokens(),
                                   .loss_tokens = plan.loss_tokens,
                                   .sample_id = plan.sample_id,
                                   .question = plan.question});
    offset += plan.num_tokens();
    tokens.cu_seqlens.push_back(static_cast<int32_t>(offset));
  }
  if (!placed_.empty()) tokens.cu_lanes.push_back(static_cast<int32_t>(offset));
}

int64_t MicrobatchBuilder::payload_bytes() const {
  int64_t bytes = 0;
  for (const auto& [pack, pack_bytes] : payload_bytes_) bytes += pack_bytes;
  return bytes;
}

void MicrobatchBuilder::Allocate() {
  for (auto& [name, pack] : microbatch_.media) {
    if (const auto found = payload_bytes_.find(&pack); found != payload_bytes_.end()) {
      pack.payload.resize(found->second);
    }
  }
}

absl::Status MicrobatchBuilder::Fill(int64_t index, const MediaDecoder& decoder,
                                     const FillOptions& options) {
  if (options.blank_media) return absl::OkStatus();
  const SamplePlan& plan = *placed_[index].plan;
  const SampleStore& store = *planner_.sources()[plan.media_key.source].store;
  absl::Status status;
  for (size_t i = 0; i < places_[index].size() && status.ok(); ++i) {
    parallel::MediaPack& pack = *places_[index][i].pack;
    const parallel::MediaItem& item = pack.items[places_[index][i].item];
    const int64_t row_bytes = RowBytes(pack);
    status =
        decoder.Decode(store, plan, plan.tokenized.media[i], options.augment,
                       absl::MakeSpan(pack.payload)
                           .subspan(item.input_row * row_bytes, item.num_input_rows * row_bytes));
    if (IsSampleFault(status)) status = NameMedium(status, store, plan, static_cast<int32_t>(i));
  }
  if (status.ok()) return status;
  if (!IsSampleFault(status)) return Annotate(status, plan.sample_id);
  for (const PayloadPlace& place : places_[index]) {
    const parallel::MediaItem& item = place.pack->items[place.item];
    const int64_t row_bytes = RowBytes(*place.pack);
    std::memset(place.pack->payload.data() + item.input_row * row_bytes, 0,
                item.num_input_rows * row_bytes);
  }
  failures_[index] = std::move(status);
  return absl::OkStatus();
}

Microbatch MicrobatchBuilder::Finish(std::vector<FaultEvent>* faults) {
  for (size_t i = 0; i < placed_.size(); ++i) {
    SampleRef& sample = microbatch_.samples[i];
    if (!failures_[i].ok()) {
      std::fill(microbatch_.tokens.targets.begin() + sample.token_begin,
                microbatch_.tokens.targets.begin() + sample.token_end, -1);
      sample.loss_tokens = 0;
      sample.is_blanked = true;
      faults->push_back({SampleFault::kBlanked, planner_.sources()[sample.source].name,
                         sample.sample_id, std::string(failures_[i].message())});
    }
    microbatch_.loss_tokens += sample.loss_tokens;
  }
  return std::move(microbatch_);
}

absl::StatusOr<Microbatch> DecodeSample(const SamplePlanner& planner, const MediaDecoder& decoder,
                                        std::shared_ptr<const SamplePlan> plan) {
  MicrobatchBuilder builder(planner, {{.plan = std::move(plan)}});
  builder.Allocate();
  OMNI_RETURN_IF_ERROR(builder.Fill(0, decoder, {}));
  std::vector<FaultEvent> faults;
  Microbatch microbatch = builder.Finish(&faults);
  if (faults.empty()) return microbatch;
  return absl::DataLossError(absl::StrCat(faults[0].sample_id, ": ", faults[0].message));
}

}  // namespace omni::dataloader
