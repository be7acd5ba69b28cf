// Whole files. What is written is either all there or not at all: it goes to a name of its own, is
// synced and renamed, and the folder is synced.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/base/unique_fd.h"

namespace omni {

// "path: what: reason" for an errno of a system call on `path`. NotFound, PermissionDenied,
// ResourceExhausted (the disk or a quota is full), else Unavailable.
absl::Status FileError(int error, absl::string_view path, absl::string_view what);

// A file being written, under a name of its own that ends in ".partial": several processes may
// write the same file, and the last to commit stays. Without Commit it is removed.
class AtomicFile {
 public:
  static absl::StatusOr<AtomicFile> Create(const std::string& path);
  ~AtomicFile();
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&& other) noexcept;

  // Errors as FileError, with the number of bytes written.
  absl::Status Write(const void* data, int64_t num_bytes);
  absl::Status Commit();
  int64_t num_bytes() const { return num_bytes_; }

 private:
  AtomicFile() = default;
  absl::Status Fail(const char* what) const;
  std::string path_, partial_path_;
  UniqueFd fd_;
  int64_t num_bytes_ = 0;
};

absl::Status WriteFileAtomically(const std::string& path, absl::string_view contents);
// FileError, or InvalidArgument for a folder.
absl::StatusOr<std::string> ReadFile(const std::string& path);
// Makes a rename inside `folder` durable.
absl::Status SyncFolder(const std::string& folder);

}  // namespace omni
