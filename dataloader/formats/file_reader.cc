#include "dataloader/formats/file_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace omni::dataloader {

FileReader::FileReader(int fd, std::string path, int64_t size)
    : fd_(fd), path_(std::move(path)), size_(size) {}

FileReader::FileReader(FileReader&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)), size_(other.size_) {}

FileReader& FileReader::operator=(FileReader&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  std::swap(size_, other.size_);
  return *this;
}

FileReader::~FileReader() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<FileReader> FileReader::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    const int code = errno;
    const std::string message = absl::StrCat(path, ": can't be opened: ", std::strerror(code));
    if (code == ENOENT || code == ENOTDIR) return absl::NotFoundError(message);
    if (code == EACCES || code == EPERM) return absl::PermissionDeniedError(message);
    return absl::InternalError(message);
  }
  return FromDescriptor(fd, path);
}

absl::StatusOr<FileReader> FileReader::FromDescriptor(int fd, std::string path) {
  FileReader file(fd, std::move(path), 0);
  struct stat info {};
  if (fstat(fd, &info) != 0) {
    return absl::InternalError(absl::StrCat(file.path_, ": ", std::strerror(errno)));
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path_, S_ISDIR(info.st_mode) ? " is a folder" : " is not a file",
                     ", expected a file"));
  }
  file.size_ = info.st_size;
  return file;
}

int FileReader::fd_at_start() const {
  lseek(fd_, 0, SEEK_SET);
  return fd_;
}

absl::StatusOr<std::string> FileReader::Read(int64_t offset, int64_t count) const {
  if (offset < 0 || count < 0 || offset > size_ || count > size_ - offset) {
    return absl::DataLossError(absl::StrCat(path_, ": bytes ", offset, " to ", offset + count,
                                            " are not in the file of ", size_, " bytes"));
  }
  std::string bytes(count, '\0');
  int64_t have = 0;
  while (have < count) {
    const ssize_t got = pread(fd_, bytes.data() + have, count - have, offset + have);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      return absl::DataLossError(
          absl::StrCat(path_, ": bytes ", offset, " to ", offset + count,
                       " can't be read: ", got < 0 ? std::strerror(errno) : "the file shrank"));
    }
    have += got;
  }
  return bytes;
}

}  // namespace omni::dataloader
