#include "dataloader/formats/sample_store.h"

#include <glob.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "dataloader/formats/stores.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

namespace fs = std::filesystem;

class Concatenation : public SampleStore {
 public:
  explicit Concatenation(std::vector<std::unique_ptr<SampleStore>> stores)
      : stores_(std::move(stores)) {
    for (const auto& store : stores_) ends_.push_back(num_samples() + store->num_samples());
  }

  int64_t num_samples() const override { return ends_.empty() ? 0 : ends_.back(); }
  std::string sample_id(int64_t index) const override {
    const auto [store, local] = Find(index);
    return store->sample_id(local);
  }
  absl::StatusOr<SampleMetadata> Metadata(int64_t index) const override {
    const auto [store, local] = Find(index);
    return store->Metadata(local);
  }
  absl::StatusOr<Conversation> LoadConversation(int64_t index) const override {
    const auto [store, local] = Find(index);
    return store->LoadConversation(local);
  }
  absl::StatusOr<std::string> LoadMedia(int64_t index, int32_t media_index) const override {
    const auto [store, local] = Find(index);
    return store->LoadMedia(local, media_index);
  }
  absl::StatusOr<Sample> Load(int64_t index) const override {
    const auto [store, local] = Find(index);
    return store->Load(local);
  }
  int64_t held_bytes() const override {
    int64_t bytes = static_cast<int64_t>(ends_.capacity() * sizeof(ends_[0]));
    for (const auto& store : stores_) bytes += store->held_bytes();
    return bytes;
  }
  int64_t max_held_bytes() const override {
    int64_t bytes = static_cast<int64_t>(ends_.capacity() * sizeof(ends_[0]));
    for (const auto& store : stores_) bytes += store->max_held_bytes();
    return bytes;
  }

 private:
  std::pair<const SampleStore*, int64_t> Find(int64_t index) const {
    OMNI_CHECK(index >= 0 && index < num_samples());
    const size_t i = std::upper_bound(ends_.begin(), ends_.end(), index) - ends_.begin();
    return {stores_[i].get(), index - (i == 0 ? 0 : ends_[i - 1])};
  }

  std::vector<std::unique_ptr<SampleStore>> stores_;
  std::vector<int64_t> ends_;  // one past each store's last sample
};

bool IsTar(const std::string& path) { return absl::EndsWith(path, ".tar"); }
bool IsJson(const std::string& path) {
  return absl::EndsWith(path, ".json") || absl::EndsWith(path, ".jsonl");
}

absl::StatusOr<std::vector<std::string>> FilesOfFolder(const std::string& folder) {
  std::vector<std::string> tars, jsons;
  std::error_code error;
  fs::directory_iterator it(folder, error), end;
  while (!error && it != end) {
    const std::string path = it->path().string();
    if (IsTar(path)) tars.push_back(path);
    if (IsJson(path)) jsons.push_back(path);
    it.increment(error);
  }
  if (error) return StorageError(error.value(), folder, "can't be listed");
  std::vector<std::string> files = tars.empty() ? std::move(jsons) : std::move(tars);
  if (files.empty()) {
    return absl::NotFoundError(
        absl::StrCat(folder, ": the folder has no .tar, .json or .jsonl files"));
  }
  return files;
}

// glob's own errors are of folders it can't list: those it would leave out without a word.
thread_local absl::Status glob_error;
int OnGlobError(const char* path, int error) {
  if (error == ENOTDIR || error == EACCES) return 0;  // a file; lost+found
  glob_error = StorageError(error, path, "can't be listed");
  return 1;
}

absl::StatusOr<std::vector<std::string>> FilesOf(const std::string& path, const Storage& storage) {
  struct stat info {};
  if (storage.Stat(path, &info) == 0) {
    if (S_ISDIR(info.st_mode)) return FilesOfFolder(path);
    return std::vector<std::string>{path};
  }
  const absl::Status status = StorageError(errno, path, "can't be opened");
  if (!absl::IsNotFound(status)) return status;
  if (path.find_first_of("*?[") == std::string::npos) {
    return absl::NotFoundError(absl::StrCat(path, ": no such file or folder"));
  }
  glob_t matches{};
  std::vector<std::string> files;
  glob_error = absl::OkStatus();
  if (glob(path.c_str(), 0, OnGlobError, &matches) == 0) {
    files.assign(matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
  }
  globfree(&matches);
  OMNI_RETURN_IF_ERROR(glob_error);
  if (files.empty()) return absl::NotFoundError(absl::StrCat(path, ": nothing matches"));
  return files;
}

}  // namespace

absl::StatusOr<Sample> SampleStore::Load(int64_t index) const {
  OMNI_ASSIGN_OR_RETURN(SampleMetadata metadata, Metadata(index));
  Sample sample;
  OMNI_ASSIGN_OR_RETURN(sample.conversation, LoadConversation(index));
  sample.media_info = std::move(metadata.media);
  for (size_t i = 0; i < sample.media_info.size(); ++i) {
    OMNI_ASSIGN_OR_RETURN(std::string bytes, LoadMedia(index, static_cast<int32_t>(i)));
    sample.media.push_back(std::move(bytes));
  }
  return sample;
}

std::unique_ptr<SampleStore> Concatenate(std::vector<std::unique_ptr<SampleStore>> stores) {
  if (stores.size() == 1) return std::move(stores[0]);
  return std::make_unique<Concatenation>(std::move(stores));
}

absl::StatusOr<std::unique_ptr<SampleStore>> OpenSource(const std::string& path,
                                                        const OpenOptions& given) {
  OpenOptions options = given;
  if (options.storage == nullptr) options.storage = std::make_shared<Storage>();
  OMNI_ASSIGN_OR_RETURN(std::vector<std::string> files, options.storage->Retry([&](int32_t) {
    return FilesOf(path, *options.storage);
  }));
  std::sort(files.begin(), files.end());
  std::vector<std::unique_ptr<SampleStore>> stores;
  const auto measured = std::make_shared<MeasuredMedia>(kMaxMeasuredBytes);
  for (const std::string& file : files) {
    if (!IsTar(file) && !IsJson(file)) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": expected a .tar, .json or .jsonl file"));
    }
    OMNI_ASSIGN_OR_RETURN(
        std::unique_ptr<SampleStore> store,
        IsTar(file) ? OpenTarStore(file, options) : OpenJsonStore(file, options, measured));
    stores.push_back(std::move(store));
  }
  return Concatenate(std::move(stores));
}

int64_t SourceBytes(const std::string& path, const Storage* storage) {
  const Storage plain;
  if (storage == nullptr) storage = &plain;
  const auto files = FilesOf(path, *storage);
  if (!files.ok()) return 0;
  int64_t bytes = 0;
  for (const std::string& file : *files) {
    struct stat info {};
    if (storage->Stat(file, &info) != 0) return 0;
    bytes += info.st_size;
  }
  return bytes;
}

}  // namespace omni::dataloader
