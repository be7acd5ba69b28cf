#include "runtime/base/file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "runtime/base/status.h"

namespace omni {

namespace {

constexpr int kMaxPartials = 1000;
// What has been written goes to the disk meanwhile, so that the sync at the end is short.
constexpr int64_t kWritebackBytes = 4 << 20;

}  // namespace

absl::Status FileError(int error, absl::string_view path, absl::string_view what) {
  const std::string message = absl::StrCat(path, ": ", what, ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::UnavailableError(message);
  }
}

absl::StatusOr<AtomicFile> AtomicFile::Create(const std::string& path, OnBlock on_block) {
  AtomicFile file;
  file.path_ = path;
  file.on_block_ = std::move(on_block);
  // A name that is taken belongs to another thread, to another machine or to one that crashed.
  for (int number = 0; number < kMaxPartials; ++number) {
    std::string partial_path = absl::StrCat(path, ".", getpid(), "-", number, ".partial");
    file.fd_ = UniqueFd(open(partial_path.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644));
    if (file.fd_.valid()) {
      file.partial_path_ = std::move(partial_path);
      return file;
    }
    if (errno != EEXIST) break;
  }
  return FileError(errno, path, "can't be created");
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      partial_path_(std::exchange(other.partial_path_, {})),
      on_block_(std::move(other.on_block_)),
      block_size_(other.block_size_),
      written_back_(other.written_back_),
      fd_(std::move(other.fd_)),
      num_bytes_(other.num_bytes_) {}

AtomicFile& AtomicFile::operator=(AtomicFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(partial_path_, other.partial_path_);
  std::swap(on_block_, other.on_block_);
  std::swap(block_size_, other.block_size_);
  std::swap(written_back_, other.written_back_);
  std::swap(fd_, other.fd_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}

AtomicFile::~AtomicFile() {
  if (!partial_path_.empty()) unlink(partial_path_.c_str());
}

absl::Status AtomicFile::Fail(const char* what) const {
  return FileError(errno, path_, absl::StrCat(what, " after ", num_bytes_, " bytes"));
}

absl::Status AtomicFile::Write(const void* data, int64_t num_bytes) {
  const char* next = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const absl::Time begin = absl::Now();
    const ssize_t written = write(fd_.get(), next, std::min(num_bytes, block_size_.bytes()));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return Fail("writing failed");
    num_bytes_ += written;
    OMNI_RETURN_IF_ERROR(Tell({next, static_cast<size_t>(written)}));
    block_size_.Took(absl::Now() - begin);
    next += written;
    num_bytes -= written;
    if (num_bytes_ - written_back_ >= kWritebackBytes) StartWriteback();
  }
  return absl::OkStatus();
}

absl::Status AtomicFile::Tell(absl::string_view block) const {
  return on_block_ ? on_block_(path_, block) : absl::OkStatus();
}

// Of what came since the last call, having waited for what came before. A file system that can't
// does all at the sync.
void AtomicFile::StartWriteback() {
  (void)sync_file_range(fd_.get(), 0, written_back_, SYNC_FILE_RANGE_WAIT_BEFORE);
  (void)sync_file_range(fd_.get(), written_back_, num_bytes_ - written_back_,
                        SYNC_FILE_RANGE_WRITE);
  written_back_ = num_bytes_;
}

absl::Status AtomicFile::Commit() {
  if (fsync(fd_.get()) != 0) return Fail("syncing failed");
  OMNI_RETURN_IF_ERROR(Tell({}));
  if (close(fd_.Release()) != 0) return Fail("closing failed");
  if (rename(partial_path_.c_str(), path_.c_str()) != 0) return Fail("renaming failed");
  partial_path_.clear();
  return SyncFolder(std::filesystem::path(path_).parent_path().string());
}

absl::Status WriteFileAtomically(const std::string& path, absl::string_view contents) {
  OMNI_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path));
  OMNI_RETURN_IF_ERROR(file.Write(contents.data(), static_cast<int64_t>(contents.size())));
  return file.Commit();
}

absl::StatusOr<std::string> ReadFile(const std::string& path, const OnBlock& on_block) {
  std::string contents;
  const auto append = [&](absl::string_view name, absl::string_view block) {
    contents.append(block.data(), block.size());
    return on_block ? on_block(name, block) : absl::OkStatus();
  };
  OMNI_RETURN_IF_ERROR(ReadBlocks(path, append).status());
  return contents;
}

absl::StatusOr<int64_t> ReadBlocks(const std::string& path, const OnBlock& on_block) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return FileError(errno, path, "can't be opened");
  int64_t num_bytes = 0;
  BlockSize block_size;
  std::vector<char> buffer;
  for (;;) {
    const absl::Time begin = absl::Now();
    if (static_cast<int64_t>(buffer.size()) < block_size.bytes()) buffer.resize(block_size.bytes());
    const ssize_t count = read(fd.get(), buffer.data(), block_size.bytes());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EISDIR) {
      return absl::InvalidArgumentError(absl::StrCat(path, " is a folder, expected a file"));
    }
    if (count < 0) return FileError(errno, path, "reading failed");
    if (count == 0) return num_bytes;
    num_bytes += count;
    OMNI_RETURN_IF_ERROR(on_block(path, {buffer.data(), static_cast<size_t>(count)}));
    block_size.Took(absl::Now() - begin);
  }
}

absl::StatusOr<std::vector<std::string>> EntriesOf(const std::string& folder, Depth depth) {
  std::vector<std::string> entries;
  std::error_code error;
  const auto walk = [&](auto entry) {
    for (; !error && entry != decltype(entry)(); entry.increment(error)) {
      entries.push_back(entry->path().string());
    }
  };
  if (depth == Depth::kFolder) {
    walk(std::filesystem::directory_iterator(folder, error));
  } else {
    walk(std::filesystem::recursive_directory_iterator(folder, error));
  }
  if (error) return FileError(error.value(), folder, "can't be listed");
  return entries;
}

absl::Status SyncFolder(const std::string& folder) {
  const std::string path = folder.empty() ? "." : folder;
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return FileError(errno, path, "can't be opened");
  if (fsync(fd.get()) != 0) return FileError(errno, path, "syncing failed");
  return absl::OkStatus();
}

}  // namespace omni
