// Ranges of a file by pread; threads may share one.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace omni::dataloader {

class FileReader {
 public:
  // NotFound, PermissionDenied, InvalidArgument (a directory) or Internal, with the path.
  static absl::StatusOr<FileReader> Open(const std::string& path);
  // Takes over an open descriptor; `path` is for messages.
  static absl::StatusOr<FileReader> FromDescriptor(int fd, std::string path);
  ~FileReader();
  FileReader(FileReader&& other) noexcept;
  FileReader& operator=(FileReader&& other) noexcept;

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }
  // The descriptor, its offset set to 0: for libraries that read from one.
  int fd_at_start() const;

  // DataLoss if the range is not all in the file, naming path and range.
  absl::StatusOr<std::string> Read(int64_t offset, int64_t count) const;

 private:
  FileReader(int fd, std::string path, int64_t size);
  int fd_ = -1;
  std::string path_;
  int64_t size_ = 0;
};

}  // namespace omni::dataloader
