#include "runtime/base/file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "runtime/base/status.h"

namespace omni {

namespace {

constexpr int kMaxPartials = 1000;

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

absl::StatusOr<AtomicFile> AtomicFile::Create(const std::string& path) {
  AtomicFile file;
  file.path_ = path;
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
      fd_(std::move(other.fd_)),
      num_bytes_(other.num_bytes_) {}

AtomicFile& AtomicFile::operator=(AtomicFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(partial_path_, other.partial_path_);
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
    const ssize_t written = write(fd_.get(), next, num_bytes);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return Fail("writing failed");
    next += written;
    num_bytes -= written;
    num_bytes_ += written;
  }
  return absl::OkStatus();
}

absl::Status AtomicFile::Commit() {
  if (fsync(fd_.get()) != 0) return Fail("syncing failed");
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

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return FileError(errno, path, "can't be opened");
  std::string contents;
  std::vector<char> buffer(1 << 16);
  for (;;) {
    const ssize_t count = read(fd.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EISDIR) {
      return absl::InvalidArgumentError(absl::StrCat(path, " is a folder, expected a file"));
    }
    if (count < 0) return FileError(errno, path, "reading failed");
    if (count == 0) return contents;
    contents.append(buffer.data(), count);
  }
}

absl::Status SyncFolder(const std::string& folder) {
  const std::string path = folder.empty() ? "." : folder;
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return FileError(errno, path, "can't be opened");
  if (fsync(fd.get()) != 0) return FileError(errno, path, "syncing failed");
  return absl::OkStatus();
}

}  // namespace omni
