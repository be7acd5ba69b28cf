#include "dataloader/media_task.h"

#include <algorithm>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

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

// Decodes one medium to where its rows belong.
absl::Status FillPlace(const SampleStore& store, const MediaDecoder& decoder,
                       const SamplePlan& plan, const MediaTask::Place& place, bool augment) {
  const MediaSpan& media = plan.tokenized.media[place.span];
  const parallel::UnitRange& rows = place.pack->input_rows(place.place);
  const absl::Span<uint8_t> own = place.pack->payload(place.place);
  if (rows.size() == 0 && media.shape.item.num_input_rows > 0) return absl::OkStatus();
  return decoder.Decode(store, plan, media, augment, rows, own);
}

}  // namespace

PackBuilder::PackBuilder(MediaKind kind, const DataConfig& config) {
  const bool is_audio = kind == MediaKind::kAudio;
  pack_.dtype = is_audio ? DType::kFloat32 : DType::kUInt8;
  pack_.row_elements = is_audio ? config.audio.mel_bands : config.image.geometry.row_elements();
}

int64_t PackBuilder::Append(const MediaSpan& media, int64_t offset,
                            const parallel::UnitRange& input_rows,
                            const parallel::UnitRange& output_rows) {
  parallel::MediaItem item = media.shape.item;
  item.input_row = num_rows_;
  pack_.items.push_back(item);
  input_rows_.push_back(input_rows);
  num_rows_ += input_rows.size();
  for (int64_t row = output_rows.begin; row < output_rows.end; ++row) {
    const int64_t token = media.run_begins[row / media.run_rows()] + row % media.run_rows();
    pack_.token_rows.push_back(static_cast<int32_t>(offset + token));
  }
  return static_cast<int64_t>(pack_.items.size()) - 1;
}

absl::Span<uint8_t> PackBuilder::payload(int64_t place) {
  return absl::MakeSpan(pack_.payload)
      .subspan(pack_.items[place].input_row * row_bytes(), input_rows_[place].size() * row_bytes());
}

absl::Status Fill(const SamplePlanner& planner, const MediaDecoder& decoder,
                  const FillOptions& options, MediaTask* task) {
  if (options.blank_media) return absl::OkStatus();
  const SamplePlan& plan = *task->plan;
  const SampleStore& store = *planner.sources()[plan.media_key.source].store;
  absl::Status status;
  for (size_t i = 0; i < task->places.size() && status.ok(); ++i) {
    const MediaTask::Place& place = task->places[i];
    status = FillPlace(store, decoder, plan, place, options.augment);
    if (IsSampleFault(status)) status = NameMedium(status, store, plan, place.span);
  }
  if (status.ok()) return status;
  if (!IsSampleFault(status)) return Annotate(status, plan.sample_id);
  for (const MediaTask::Place& place : task->places) {
    const absl::Span<uint8_t> own = place.pack->payload(place.place);
    std::fill(own.begin(), own.end(), uint8_t{0});
  }
  task->failure = std::move(status);
  return absl::OkStatus();
}

}  // namespace omni::dataloader
