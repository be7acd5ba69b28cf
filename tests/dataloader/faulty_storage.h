// Storage whose system calls fail as a test says: the errnos of a disk, a network or a limit.
#pragma once

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <functional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "dataloader/formats/storage.h"

namespace omni::dataloader {

enum class Call : uint8_t { kOpen, kRead, kStat };

class FaultyStorage : public Storage {
 public:
  // The errno of a call on a file, 0 to let it through. Called from many threads.
  using Rule = std::function<int(Call call, const std::string& path)>;

  explicit FaultyStorage(Rule rule, absl::Duration retry = absl::ZeroDuration(),
                         std::function<void(const std::string&)> on_trouble = {})
      : Storage({.retry = retry, .on_trouble = std::move(on_trouble)}), rule_(std::move(rule)) {}

  int Open(const std::string& path) const override {
    return Fails(Call::kOpen, path) ? -1 : Storage::Open(path);
  }
  ssize_t ReadAt(int fd, void* to, size_t count, off_t offset) const override {
    char path[4096] = "";
    const ssize_t size =
        readlink(absl::StrCat("/proc/self/fd/", fd).c_str(), path, sizeof path - 1);
    const std::string name(path, size < 0 ? 0 : size);
    return Fails(Call::kRead, name) ? -1 : Storage::ReadAt(fd, to, count, offset);
  }
  int Stat(const std::string& path, struct stat* info) const override {
    return Fails(Call::kStat, path) ? -1 : Storage::Stat(path, info);
  }

 private:
  bool Fails(Call call, const std::string& path) const {
    const int error = rule_(call, path);
    if (error != 0) errno = error;
    return error != 0;
  }

  const Rule rule_;
};

}  // namespace omni::dataloader
