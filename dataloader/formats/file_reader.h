// Ranges of a file by pread; threads may share one.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "runtime/base/unique_fd.h"

namespace omni::dataloader {

class FileReader {
 public:
  // FileError (runtime/base/file.h), or InvalidArgument for a folder.
  static absl::StatusOr<FileReader> Open(const std::string& path);
  // Takes over an open descriptor; `path` is for messages.
  static absl::StatusOr<FileReader> FromDescriptor(UniqueFd fd, std::string path);

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }
  // The descriptor, its offset set to 0: for libraries that read from one.
  int fd_at_start() const;

  // DataLoss if the range is not all in the file, naming path and range.
  absl::StatusOr<std::string> Read(int64_t offset, int64_t count) const;

 private:
  FileReader(UniqueFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}
  UniqueFd fd_;
  std::string path_;
  int64_t size_ = 0;
};

}  // namespace omni::dataloader
