#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dataloader/formats/file_reader.h"
#include "dataloader/formats/json_split.h"
#include "dataloader/formats/stores.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

constexpr int64_t kPiece = int64_t{1} << 20;
constexpr int64_t kHeaderBytes = int64_t{64} << 10;

class JsonStore : public SampleStore {
 public:
  JsonStore(FileReader file, std::vector<JsonRange> ranges, const OpenOptions& options)
      : file_(std::move(file)), ranges_(std::move(ranges)), video_(options.video) {
    const size_t slash = file_.path().rfind('/');
    if (slash != std::string::npos) folder_ = file_.path().substr(0, slash + 1);
  }

  int64_t num_samples() const override { return static_cast<int64_t>(ranges_.size()); }

  std::string sample_id(int64_t index) const override {
    return absl::StrCat(file_.path(), ":", ranges_.at(index).line);
  }

  absl::StatusOr<SampleMetadata> Metadata(int64_t index) const override {
    SampleMetadata metadata{
        .sample_id = sample_id(index), .text_bytes = ranges_.at(index).size, .media = {}};
    {
      const std::lock_guard lock(mutex_);
      if (const auto it = measured_.find(index); it != measured_.end()) {
        metadata.media = it->second;
        return metadata;
      }
    }
    OMNI_ASSIGN_OR_RETURN(const Conversation conversation, LoadConversation(index));
    for (const Part* part : conversation.media()) {
      absl::StatusOr<MediaInfo> info = Measure(*part);
      if (!info.ok()) return Lost(index, *part, info.status());
      metadata.media.push_back(*info);
    }
    const std::lock_guard lock(mutex_);
    measured_[index] = metadata.media;
    return metadata;
  }

  absl::StatusOr<Conversation> LoadConversation(int64_t index) const override {
    const JsonRange& range = ranges_.at(index);
    absl::StatusOr<std::string> json = file_.Read(range.offset, range.size);
    if (!json.ok()) {
      return absl::DataLossError(absl::StrCat(sample_id(index), ": ", json.status().message()));
    }
    return ParseConversation(*json, sample_id(index));
  }

  absl::StatusOr<std::string> LoadMedia(int64_t index, int32_t media_index) const override {
    OMNI_ASSIGN_OR_RETURN(const Conversation conversation, LoadConversation(index));
    const std::vector<const Part*> media = conversation.media();
    if (media_index < 0 || media_index >= static_cast<int32_t>(media.size())) {
      return absl::DataLossError(
          absl::StrCat(sample_id(index), ": medium ", media_index, " of ", media.size()));
    }
    return ReadMedia(index, *media[media_index]);
  }

  absl::StatusOr<Sample> Load(int64_t index) const override {  // parses once
    OMNI_ASSIGN_OR_RETURN(SampleMetadata metadata, Metadata(index));
    Sample sample{.conversation = {}, .media_info = std::move(metadata.media), .media = {}};
    OMNI_ASSIGN_OR_RETURN(sample.conversation, LoadConversation(index));
    for (const Part* part : sample.conversation.media()) {
      OMNI_ASSIGN_OR_RETURN(std::string bytes, ReadMedia(index, *part));
      sample.media.push_back(std::move(bytes));
    }
    return sample;
  }

 private:
  std::string Path(const Part& part) const {
    return part.text[0] == '/' ? part.text : folder_ + part.text;
  }

  absl::StatusOr<std::string> ReadMedia(int64_t index, const Part& part) const {
    absl::StatusOr<FileReader> file = FileReader::Open(Path(part));
    if (!file.ok()) return Lost(index, part, file.status());
    absl::StatusOr<std::string> bytes = file->Read(0, file->size());
    if (!bytes.ok()) return Lost(index, part, bytes.status());
    return bytes;
  }

  absl::StatusOr<MediaInfo> Measure(const Part& part) const {
    OMNI_ASSIGN_OR_RETURN(const FileReader file, FileReader::Open(Path(part)));
    const MediaKind kind = MediaKindOf(part.kind);
    if (kind == MediaKind::kImage && file.size() > kHeaderBytes) {
      OMNI_ASSIGN_OR_RETURN(const std::string start, file.Read(0, kHeaderBytes));
      absl::StatusOr<MediaInfo> info = ProbeMedia(kind, start);
      if (info.ok()) return info;  // else its header may be longer
    }
    OMNI_ASSIGN_OR_RETURN(const std::string bytes, file.Read(0, file.size()));
    return ProbeMedia(kind, bytes, video_.get());
  }

  absl::Status Lost(int64_t index, const Part& part, const absl::Status& status) const {
    // A missing plugin is no fault of the sample.
    const absl::StatusCode code =
        absl::IsFailedPrecondition(status) ? status.code() : absl::StatusCode::kDataLoss;
    return absl::Status(code,
                        absl::StrCat(sample_id(index), ": ", part.text, ": ", status.message()));
  }

  FileReader file_;
  std::string folder_;
  std::vector<JsonRange> ranges_;
  std::shared_ptr<const VideoPlugin> video_;
  mutable std::mutex mutex_;
  mutable std::map<int64_t, std::vector<MediaInfo>> measured_;  // guarded by mutex_
};

}  // namespace

absl::StatusOr<std::unique_ptr<SampleStore>> OpenJsonStore(const std::string& json_path,
                                                           const OpenOptions& options) {
  OMNI_ASSIGN_OR_RETURN(FileReader file, FileReader::Open(json_path));
  JsonSplitter splitter;
  for (int64_t at = 0; at < file.size(); at += kPiece) {
    OMNI_ASSIGN_OR_RETURN(const std::string piece,
                          file.Read(at, std::min(kPiece, file.size() - at)));
    if (absl::Status status = splitter.Feed(piece); !status.ok()) {
      return Annotate(status, json_path);
    }
  }
  absl::StatusOr<std::vector<JsonRange>> ranges = splitter.Finish();
  if (!ranges.ok()) return Annotate(ranges.status(), json_path);
  return std::unique_ptr<SampleStore>(
      std::make_unique<JsonStore>(std::move(file), *std::move(ranges), options));
}

}  // namespace omni::dataloader
