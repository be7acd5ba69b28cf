#include "dataloader/formats/file_reader.h"

#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace omni::dataloader {

absl::StatusOr<FileReader> FileReader::Open(const std::string& path,
                                            std::shared_ptr<Storage> storage) {
  if (storage == nullptr) storage = std::make_shared<Storage>();
  if (path.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError("found a zero byte in the name of a file");
  }
  int fd = -1;
  do {
    fd = storage->Open(path);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return StorageError(errno, path, "can't be opened");
  return FromDescriptor(UniqueFd(fd), path, std::move(storage));
}

absl::StatusOr<FileReader> FileReader::FromDescriptor(UniqueFd fd, std::string path,
                                                      std::shared_ptr<Storage> storage) {
  if (storage == nullptr) storage = std::make_shared<Storage>();
  FileReader file(std::move(fd), std::move(path), std::move(storage));
  struct stat info {};
  if (fstat(file.fd_.get(), &info) != 0) {
    return StorageError(errno, file.path_, "can't be read");
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.path_, S_ISDIR(info.st_mode) ? " is a folder" : " is not a file",
                     ", expected a file"));
  }
  file.size_ = info.st_size;
  return file;
}

absl::StatusOr<std::string> FileReader::Read(int64_t offset, int64_t count) const {
  if (offset < 0 || count < 0 || offset > size_ || count > size_ - offset) {
    return absl::DataLossError(absl::StrCat(path_, ": bytes ", offset, " to ", offset + count,
                                            " are not in the file of ", size_, " bytes"));
  }
  std::string bytes(count, '\0');
  int64_t have = 0;
  while (have < count) {
    const ssize_t got =
        storage_->ReadAt(fd_.get(), bytes.data() + have, count - have, offset + have);
    if (got < 0 && errno == EINTR) continue;
    const auto range = [&] { return absl::StrCat("bytes ", offset, " to ", offset + count); };
    if (got < 0) return StorageError(errno, path_, absl::StrCat(range(), " can't be read"));
    if (got == 0) {
      return absl::UnavailableError(absl::StrCat(path_, ": ", range(),
                                                 " can't be read: the file has shrunk to ",
                                                 offset + have, " bytes or less, it had ", size_));
    }
    have += got;
  }
  return bytes;
}

}  // namespace omni::dataloader
