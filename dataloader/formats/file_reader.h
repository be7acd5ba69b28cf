// Ranges of a file by pread; threads may share one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "dataloader/formats/storage.h"
#include "runtime/base/unique_fd.h"

namespace omni::dataloader {

class FileReader {
 public:
  // StorageError, or InvalidArgument for what is no file. `storage`: null for the system's own. One
  // attempt: Storage::Retry is the caller's to use.
  static absl::StatusOr<FileReader> Open(const std::string& path,
                                         std::shared_ptr<Storage> storage = nullptr);
  // Takes over an open descriptor; `path` is for messages.
  static absl::StatusOr<FileReader> FromDescriptor(UniqueFd fd, std::string path,
                                                   std::shared_ptr<Storage> storage = nullptr);

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }
  // Shared with the other files of the source; never null.
  const std::shared_ptr<Storage>& storage() const { return storage_; }

  // DataLoss if the range is not in the file as it was when it was opened; Unavailable, naming path
  // and errno, if it can't be read, also because the file has shrunk since.
  absl::StatusOr<std::string> Read(int64_t offset, int64_t count) const;

 private:
  FileReader(UniqueFd fd, std::string path, std::shared_ptr<Storage> storage)
      : fd_(std::move(fd)), path_(std::move(path)), storage_(std::move(storage)) {}
  UniqueFd fd_;
  std::string path_;
  std::shared_ptr<Storage> storage_;
  int64_t size_ = 0;
};

}  // namespace omni::dataloader
