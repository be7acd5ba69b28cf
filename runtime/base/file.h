// Whole files. What is written is either all there or not at all: it goes to a name of its own, is
// synced and renamed, and the folder is synced.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/base/unique_fd.h"

namespace omni {

// "path: what: reason" for an errno of a system call on `path`. NotFound, PermissionDenied,
// ResourceExhausted (the disk or a quota is full), else Unavailable.
absl::Status FileError(int error, absl::string_view path, absl::string_view what);

// Told of each block of a file after it was read or written (and with an empty one after a sync):
// to count progress, to checksum; tests are slow here, or fail. An error ends the work with it.
using OnBlock = std::function<absl::Status(absl::string_view path, absl::string_view block)>;

// How much is read or written at once: little while the storage is slow, so that progress shows.
class BlockSize {
 public:
  int64_t bytes() const { return bytes_; }
  void Took(absl::Duration time) {
    if (time < absl::Milliseconds(5) && bytes_ < kMost) bytes_ *= 2;
    if (time > absl::Milliseconds(50) && bytes_ > kLeast) bytes_ /= 2;
  }

 private:
  static constexpr int64_t kLeast = 4 << 10, kMost = 1 << 20;
  int64_t bytes_ = 16 << 10;
};

// A file being written, under a name of its own that ends in ".partial": several processes may
// write the same file, and the last to commit stays. Without Commit it is removed.
class AtomicFile {
 public:
  static absl::StatusOr<AtomicFile> Create(const std::string& path, OnBlock on_block = {});
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
  absl::Status Tell(absl::string_view block) const;
  void StartWriteback();
  std::string path_, partial_path_;
  OnBlock on_block_;
  BlockSize block_size_;
  int64_t written_back_ = 0;  // bytes that the kernel has been asked to write
  UniqueFd fd_;
  int64_t num_bytes_ = 0;
};

absl::Status WriteFileAtomically(const std::string& path, absl::string_view contents);
// FileError, or InvalidArgument for a folder.
absl::StatusOr<std::string> ReadFile(const std::string& path, const OnBlock& on_block = {});
// All bytes of a file, in order; how many there were. FileError, or what on_block returned.
absl::StatusOr<int64_t> ReadBlocks(const std::string& path, const OnBlock& on_block);
// Paths in a folder, in no order; those in folders below it too (kTree). FileError: a folder that
// can't be read to its end is not an empty one. Symbolic links are not followed.
enum class Depth { kFolder, kTree };
absl::StatusOr<std::vector<std::string>> EntriesOf(const std::string& folder,
                                                   Depth depth = Depth::kFolder);
// Makes a rename inside `folder` durable.
absl::Status SyncFolder(const std::string& folder);

}  // namespace omni
