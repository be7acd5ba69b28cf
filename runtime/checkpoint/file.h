// Files that are either whole or absent: write to a temporary name, sync, rename, sync the folder.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace omni {

// A file being written under `path`.partial. Without Commit it is removed.
class AtomicFile {
 public:
  static absl::StatusOr<AtomicFile> Create(const std::string& path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&& other) noexcept;
  ~AtomicFile();

  // ResourceExhausted when the disk (or a quota) is full, naming the file and the bytes written.
  absl::Status Write(const void* data, int64_t num_bytes);
  absl::Status Commit();
  int64_t num_bytes() const { return num_bytes_; }

 private:
  AtomicFile() = default;
  absl::Status Fail(const char* what) const;
  std::string path_;
  int fd_ = -1;
  int64_t num_bytes_ = 0;
};

absl::Status WriteFileAtomically(const std::string& path, absl::string_view contents);
absl::StatusOr<std::string> ReadFile(const std::string& path);
// Makes a rename inside `folder` durable.
absl::Status SyncFolder(const std::string& folder);

}  // namespace omni
