#include "dataloader/formats/file_reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/file.h"

namespace omni::dataloader {

absl::StatusOr<FileReader> FileReader::Open(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return FileError(errno, path, "can't be opened");
  return FromDescriptor(std::move(fd), path);
}

absl::StatusOr<FileReader> FileReader::FromDescriptor(UniqueFd fd, std::string path) {
  FileReader file(std::move(fd), std::move(path));
  struct stat info {};
  if (fstat(file.fd_.get(), &info) != 0) {
    return FileError(errno, file.path_, "can't be read");
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
  lseek(fd_.get(), 0, SEEK_SET);
  return fd_.get();
}

absl::StatusOr<std::string> FileReader::Read(int64_t offset, int64_t count) const {
  if (offset < 0 || count < 0 || offset > size_ || count > size_ - offset) {
    return absl::DataLossError(absl::StrCat(path_, ": bytes ", offset, " to ", offset + count,
                                            " are not in the file of ", size_, " bytes"));
  }
  std::string bytes(count, '\0');
  int64_t have = 0;
  while (have < count) {
    const ssize_t got = pread(fd_.get(), bytes.data() + have, count - have, offset + have);
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
