#include "dataloader/formats/index_record.h"

#include <cstring>
#include <utility>

namespace omni::dataloader {
namespace {

struct RecordHead {
  int64_t json_offset, json_size;
  uint32_t key_bytes, num_media;
};
struct RecordMedia {
  int64_t offset, size, count;
  double fps, duration_s;
  int32_t height, width, sample_rate;
  uint8_t kind, format, padding[2];
};
static_assert(sizeof(RecordHead) == 24 && sizeof(RecordMedia) == 56);

template <typename T>
bool Take(absl::string_view* bytes, T* out) {
  if (bytes->size() < sizeof(T)) return false;
  std::memcpy(out, bytes->data(), sizeof(T));
  bytes->remove_prefix(sizeof(T));
  return true;
}

}  // namespace

void AppendRecord(const IndexedSample& sample, std::string* out) {
  const RecordHead head{sample.json.offset, sample.json.size,
                        static_cast<uint32_t>(sample.key.size()),
                        static_cast<uint32_t>(sample.media.size())};
  out->append(reinterpret_cast<const char*>(&head), sizeof head);
  out->append(sample.key);
  for (size_t i = 0; i < sample.media.size(); ++i) {
    const MediaInfo& info = sample.info[i];
    const RecordMedia media{
        .offset = sample.media[i].offset,
        .size = sample.media[i].size,
        .count = info.kind == MediaKind::kAudio ? info.num_samples : info.num_frames,
        .fps = info.fps,
        .duration_s = info.duration_s,
        .height = info.height,
        .width = info.width,
        .sample_rate = info.sample_rate,
        .kind = static_cast<uint8_t>(info.kind),
        .format = static_cast<uint8_t>(info.format),
        .padding = {}};
    out->append(reinterpret_cast<const char*>(&media), sizeof media);
  }
}

std::optional<IndexedSample> ParseRecord(absl::string_view bytes) {
  RecordHead head;
  if (!Take(&bytes, &head) || bytes.size() < head.key_bytes) return std::nullopt;
  IndexedSample sample;
  sample.json = {head.json_offset, head.json_size};
  sample.key = std::string(bytes.substr(0, head.key_bytes));
  bytes.remove_prefix(head.key_bytes);
  if (bytes.size() != head.num_media * sizeof(RecordMedia)) return std::nullopt;
  for (uint32_t i = 0; i < head.num_media; ++i) {
    RecordMedia media;
    if (!Take(&bytes, &media) || media.kind > static_cast<uint8_t>(MediaKind::kVideo)) {
      return std::nullopt;
    }
    MediaInfo info{.kind = static_cast<MediaKind>(media.kind),
                   .format = static_cast<MediaFormat>(media.format),
                   .height = media.height,
                   .width = media.width,
                   .sample_rate = media.sample_rate,
                   .fps = media.fps,
                   .duration_s = media.duration_s};
    (info.kind == MediaKind::kAudio ? info.num_samples : info.num_frames) = media.count;
    sample.media.push_back({media.offset, media.size});
    sample.info.push_back(info);
  }
  return sample;
}

}  // namespace omni::dataloader
