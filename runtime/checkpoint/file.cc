#include "runtime/checkpoint/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "runtime/base/status.h"

namespace omni {
namespace {

absl::Status SystemError(int error, absl::string_view path, absl::string_view what) {
  const std::string message = absl::StrCat(path, ": ", what, ": ", std::strerror(error));
  if (error == ENOSPC || error == EDQUOT || error == EFBIG)
    return absl::ResourceExhaustedError(message);
  if (error == ENOENT) return absl::NotFoundError(message);
  return absl::UnavailableError(message);
}

}  // namespace

absl::StatusOr<AtomicFile> AtomicFile::Create(const std::string& path) {
  AtomicFile file;
  file.path_ = path;
  file.fd_ = open((path + ".partial").c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);
  if (file.fd_ < 0) return SystemError(errno, path, "can't be created");
  return file;
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      num_bytes_(other.num_bytes_) {}

AtomicFile& AtomicFile::operator=(AtomicFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  close(fd_);
  unlink((path_ + ".partial").c_str());
}

absl::Status AtomicFile::Fail(const char* what) const {
  return SystemError(errno, path_, absl::StrCat(what, " after ", num_bytes_, " bytes"));
}

absl::Status AtomicFile::Write(const void* data, int64_t num_bytes) {
  const char* next = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const ssize_t written = write(fd_, next, num_bytes);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return Fail("writing failed");
    next += written;
    num_bytes -= written;
    num_bytes_ += written;
  }
  return absl::OkStatus();
}

absl::Status AtomicFile::Commit() {
  if (fsync(fd_) != 0) return Fail("syncing failed");
  const int fd = std::exchange(fd_, -1);
  if (close(fd) != 0) return Fail("closing failed");
  if (rename((path_ + ".partial").c_str(), path_.c_str()) != 0) return Fail("renaming failed");
  return SyncFolder(std::filesystem::path(path_).parent_path().string());
}

absl::Status WriteFileAtomically(const std::string& path, absl::string_view contents) {
  OMNI_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path));
  OMNI_RETURN_IF_ERROR(file.Write(contents.data(), static_cast<int64_t>(contents.size())));
  return file.Commit();
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return SystemError(errno, path, "can't be opened");
  std::string contents;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t count = read(fd, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      const int error = errno;
      close(fd);
      return SystemError(error, path, "reading failed");
    }
    if (count == 0) break;
    contents.append(buffer, count);
  }
  close(fd);
  return contents;
}

absl::Status SyncFolder(const std::string& folder) {
  const std::string path = folder.empty() ? "." : folder;
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return SystemError(errno, path, "can't be opened");
  const int result = fsync(fd);
  const int error = errno;
  close(fd);
  if (result != 0) return SystemError(error, path, "syncing failed");
  return absl::OkStatus();
}

}  // namespace omni
