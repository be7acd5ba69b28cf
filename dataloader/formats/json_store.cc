#include <algorithm>
#include <cerrno>
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
  JsonStore(FileReader file, RangeTable ranges, const OpenOptions& options,
            std::shared_ptr<MeasuredMedia> measured)
      : file_(std::move(file)),
        ranges_(std::move(ranges)),
        group_key_(options.group_key),
        video_(options.video),
        measured_(std::move(measured)),
        number_(measured_->NewFile()) {
    const size_t slash = file_.path().rfind('/');
    if (slash != std::string::npos) folder_ = file_.path().substr(0, slash + 1);
  }

  int64_t num_samples() const override { return ranges_.size(); }

  std::string sample_id(int64_t index) const override {
    return absl::StrCat(file_.path(), ":", ranges_.at(index).line);
  }

  absl::StatusOr<SampleMetadata> Metadata(int64_t index) const override {
    SampleMetadata metadata{
        .sample_id = sample_id(index), .text_bytes = ranges_.at(index).size, .media = {}};
    if (auto known = measured_->Find(number_, index); known.has_value()) {
      metadata.media = *std::move(known);
      return metadata;
    }
    OMNI_ASSIGN_OR_RETURN(const Conversation conversation, LoadConversation(index));
    for (const Part* part : conversation.media()) {
      OMNI_ASSIGN_OR_RETURN(const MediaInfo info, Measure(index, *part));
      metadata.media.push_back(info);
    }
    measured_->Keep(number_, index, metadata.media);
    return metadata;
  }

  absl::StatusOr<Conversation> LoadConversation(int64_t index) const override {
    const JsonRange range = ranges_.at(index);
    const absl::StatusOr<std::string> json =
        file_.storage()->Retry([&](int32_t attempt) -> absl::StatusOr<std::string> {
          if (attempt == 0) return file_.Read(range.offset, range.size);
          return ReadAnew(range);
        });
    if (!json.ok()) return Annotate(json.status(), sample_id(index));
    return ParseConversation(*json, sample_id(index), group_key_);
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

  // What files of a source share is the first one's.
  int64_t held_bytes() const override {
    return ranges_.held_bytes() + (number_ == 0 ? measured_->held_bytes() : 0);
  }

  int64_t max_held_bytes() const override {
    return ranges_.held_bytes() + (number_ == 0 ? measured_->max_bytes() : 0);
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

  // Where the handle is stale the file may be sound.
  absl::StatusOr<std::string> ReadAnew(const JsonRange& range) const {
    const absl::StatusOr<FileReader> file = FileReader::Open(file_.path(), file_.storage());
    if (!file.ok()) return absl::UnavailableError(file.status().message());
    if (file->size() != file_.size()) {
      return absl::UnavailableError(absl::StrCat(file_.path(),
                                                 ": has changed since it was opened: ", "it has ",
                                                 file->size(), " bytes, it had ", file_.size()));
    }
    return file->Read(range.offset, range.size);
  }

  absl::StatusOr<std::string> ReadMedia(int64_t index, const Part& part) const {
    return ForMedium<std::string>(index, part,
                                  [](const FileReader& file) { return file.Read(0, file.size()); });
  }

  absl::StatusOr<MediaInfo> Measure(int64_t index, const Part& part) const {
    return ForMedium<MediaInfo>(
        index, part, [&](const FileReader& file) -> absl::StatusOr<MediaInfo> {
          const MediaKind kind = MediaKindOf(part.kind);
          if (kind == MediaKind::kImage && file.size() > kHeaderBytes) {
            OMNI_ASSIGN_OR_RETURN(const std::string start, file.Read(0, kHeaderBytes));
            absl::StatusOr<MediaInfo> info = ProbeMedia(kind, start);
            if (info.ok()) return info;  // else its header may be longer
          }
          OMNI_ASSIGN_OR_RETURN(const std::string bytes, file.Read(0, file.size()));
          return ProbeMedia(kind, bytes, video_.get());
        });
  }

  // What `use` makes of a medium's file, tried again while the storage fails. Messages start with
  // the sample's id and the medium as the sample wrote it.
  template <typename T, typename Use>
  absl::StatusOr<T> ForMedium(int64_t index, const Part& part, const Use& use) const {
    absl::StatusOr<T> result = file_.storage()->Retry([&](int32_t) -> absl::StatusOr<T> {
      const std::string path = Path(part);
      const absl::StatusOr<FileReader> file = FileReader::Open(path, file_.storage());
      if (absl::IsNotFound(file.status())) return NotThere(path, file.status());
      if (!file.ok()) return file.status();
      return use(*file);
    });
    if (result.ok()) return result;
    return Annotate(result.status(), absl::StrCat(sample_id(index), ": ", part.text));
  }

  // One file that is missing is what the sample says wrongly. But where its folder is gone or
  // empty, or this file itself, a file system or a folder went away, and all samples with it.
  absl::Status NotThere(const std::string& path, const absl::Status& status) const {
    const Storage& storage = *file_.storage();
    const size_t slash = path.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
    struct stat info {};
    const auto unavailable = [&](absl::string_view why) {
      return absl::UnavailableError(absl::StrCat(status.message(), "; ", why));
    };
    if (storage.Stat(folder, &info) != 0) {
      // A name that leads through a file, "cat.jpg/1", can never have been one.
      if (errno == ENOTDIR) return absl::DataLossError(status.message());
      return unavailable(StorageError(errno, folder, "its folder can't be found").message());
    }
    if (!storage.HasEntries(folder)) {
      return unavailable(absl::StrCat("its folder ", folder, " is empty or can't be listed"));
    }
    if (storage.Stat(file_.path(), &info) != 0) {
      return unavailable(
          StorageError(errno, file_.path(), "the samples' file is gone too").message());
    }
    return absl::DataLossError(absl::StrCat(status.message(), " (missing)"));
  }

  FileReader file_;
  std::string folder_;
  RangeTable ranges_;
  const std::string group_key_;
  std::shared_ptr<const VideoPlugin> video_;
  const std::shared_ptr<MeasuredMedia> measured_;  // with the other files of the source
  const int32_t number_;                           // of this file, there
};

}  // namespace

absl::StatusOr<std::unique_ptr<SampleStore>> OpenJsonStore(
    const std::string& json_path, const OpenOptions& options,
    std::shared_ptr<MeasuredMedia> measured) {
  const std::shared_ptr<Storage>& storage = options.storage;
  OMNI_ASSIGN_OR_RETURN(FileReader file, storage->Retry([&](int32_t) {
    return FileReader::Open(json_path, storage);
  }));
  JsonSplitter splitter;
  for (int64_t at = 0; at < file.size(); at += kPiece) {
    OMNI_ASSIGN_OR_RETURN(const std::string piece, storage->Retry([&](int32_t) {
      return file.Read(at, std::min(kPiece, file.size() - at));
    }));
    if (absl::Status status = splitter.Feed(piece); !status.ok()) {
      return Annotate(status, json_path);
    }
  }
  absl::StatusOr<RangeTable> ranges = splitter.Finish();
  if (!ranges.ok()) return Annotate(ranges.status(), json_path);
  return std::unique_ptr<SampleStore>(std::make_unique<JsonStore>(
      std::move(file), *std::move(ranges), options, std::move(measured)));
}

}  // namespace omni::dataloader
