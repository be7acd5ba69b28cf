#include <utility>

#include "absl/strings/str_cat.h"
#include "dataloader/formats/file_reader.h"
#include "dataloader/formats/stores.h"
#include "dataloader/formats/tar_index.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

class TarStore : public SampleStore {
 public:
  TarStore(std::string path, std::unique_ptr<TarIndex> index, const OpenOptions& options)
      : path_(std::move(path)),
        index_(std::move(index)),
        group_key_(options.group_key),
        video_(options.video),
        storage_(options.storage) {}

  int64_t num_samples() const override { return index_->num_samples(); }

  std::string sample_id(int64_t index) const override {
    absl::StatusOr<IndexedSample> sample = index_->Get(index);
    return absl::StrCat(path_, ":", sample.ok() ? sample->key : absl::StrCat("#", index));
  }

  absl::StatusOr<SampleMetadata> Metadata(int64_t index) const override {
    OMNI_ASSIGN_OR_RETURN(IndexedSample sample, index_->Get(index));
    for (size_t i = 0; i < sample.info.size(); ++i) {
      if (sample.info[i].format != MediaFormat::kUnknown) continue;
      OMNI_ASSIGN_OR_RETURN(sample.info[i], MeasureAgain(index, static_cast<int32_t>(i)));
    }
    return SampleMetadata{.sample_id = absl::StrCat(path_, ":", sample.key),
                          .text_bytes = sample.json.size,
                          .media = std::move(sample.info)};
  }

  absl::StatusOr<Conversation> LoadConversation(int64_t index) const override {
    OMNI_ASSIGN_OR_RETURN(const IndexedSample sample, index_->Get(index));
    const std::string id = absl::StrCat(path_, ":", sample.key);
    absl::StatusOr<std::string> json = Read(sample.json);
    if (!json.ok()) return Annotate(json.status(), id);
    OMNI_ASSIGN_OR_RETURN(Conversation conversation, ParseConversation(*json, id, group_key_));
    if (conversation.media().size() != sample.media.size()) {
      return absl::DataLossError(absl::StrCat(id, ": names ", conversation.media().size(),
                                              " media, its index has ", sample.media.size()));
    }
    return conversation;
  }

  absl::StatusOr<std::string> LoadMedia(int64_t index, int32_t media_index) const override {
    OMNI_ASSIGN_OR_RETURN(const IndexedSample sample, index_->Get(index));
    const std::string id = absl::StrCat(path_, ":", sample.key);
    if (media_index < 0 || media_index >= static_cast<int32_t>(sample.media.size())) {
      return absl::DataLossError(
          absl::StrCat(id, ": medium ", media_index, " of ", sample.media.size()));
    }
    absl::StatusOr<std::string> bytes = Read(sample.media[media_index]);
    if (!bytes.ok()) return Annotate(bytes.status(), id);
    return bytes;
  }

 private:
  // What the index's maker could not measure: the reason why is not in the index.
  absl::StatusOr<MediaInfo> MeasureAgain(int64_t index, int32_t media_index) const {
    OMNI_ASSIGN_OR_RETURN(const Conversation conversation, LoadConversation(index));
    OMNI_ASSIGN_OR_RETURN(const std::string bytes, LoadMedia(index, media_index));
    const Part& part = *conversation.media()[media_index];
    const absl::StatusOr<MediaInfo> info = ProbeMedia(MediaKindOf(part.kind), bytes, video_.get());
    if (info.ok()) return info;
    return Annotate(info.status(), absl::StrCat(conversation.sample_id, ": ", part.text));
  }

  // Opened for each read: a source may have more shards than a process may have files. A shard that
  // is gone or has changed is no fault of the samples in it.
  absl::StatusOr<std::string> Read(const MemberRange& range) const {
    return storage_->Retry([&](int32_t) -> absl::StatusOr<std::string> {
      absl::StatusOr<FileReader> file = FileReader::Open(path_, storage_);
      if (!file.ok()) return absl::UnavailableError(file.status().message());
      if (index_->tar_size() > 0 && file->size() != index_->tar_size()) {
        return absl::UnavailableError(
            absl::StrCat(path_, ": has changed since its index was opened: it has ", file->size(),
                         " bytes, it had ", index_->tar_size()));
      }
      return file->Read(range.offset, range.size);
    });
  }

  std::string path_;
  std::unique_ptr<TarIndex> index_;
  const std::string group_key_;
  std::shared_ptr<const VideoPlugin> video_;
  std::shared_ptr<Storage> storage_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SampleStore>> OpenTarStore(const std::string& tar_path,
                                                          const OpenOptions& options) {
  const std::shared_ptr<Storage>& storage = options.storage;
  const VideoPlugin* const video = options.video.get();
  const auto open = [&] {
    return storage->Retry([&](int32_t) { return TarIndex::Open(tar_path, storage); });
  };
  absl::StatusOr<std::unique_ptr<TarIndex>> index = open();
  // One that can't be read now may be sound: it is not made anew.
  if (absl::IsUnavailable(index.status())) return index.status();
  if (!index.ok()) {
    // The shard itself must be there.
    OMNI_RETURN_IF_ERROR(
        storage->Retry([&](int32_t) { return FileReader::Open(tar_path, storage); }).status());
    if (!options.build_missing_index) {
      const std::string reason =
          absl::IsNotFound(index.status())
              ? absl::StrCat(tar_path, ": has no index (", IndexPath(tar_path), ")")
              : std::string(index.status().message());
      return absl::FailedPreconditionError(
          absl::StrCat(reason, "; make it by: omnitrain data index ", tar_path));
    }
    const absl::Status built = BuildTarIndex(tar_path, video, nullptr, storage).status();
    if (absl::IsPermissionDenied(built) || absl::IsResourceExhausted(built)) {
      // A folder that can't be written to: the index lives as long as the store.
      OMNI_ASSIGN_OR_RETURN(const std::vector<IndexedSample> samples,
                            ScanTar(tar_path, video, nullptr, storage));
      index = TarIndex::FromSamples(tar_path, samples);
    } else if (built.ok()) {
      index = open();
    } else {
      index = built;
    }
    if (!index.ok()) return index.status();
  }
  return std::unique_ptr<SampleStore>(
      std::make_unique<TarStore>(tar_path, *std::move(index), options));
}

}  // namespace omni::dataloader
