#include "dataloader/formats/storage.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace omni::dataloader {
namespace {

constexpr absl::Duration kFirstWait = absl::Milliseconds(100);
constexpr absl::Duration kLongestWait = absl::Seconds(5);
constexpr absl::Duration kTellPeriod = absl::Minutes(1);

// After the attempt of this number, counted from 0, that failed.
absl::Duration WaitAfter(int32_t attempt) {
  if (attempt == 0) return absl::ZeroDuration();
  return std::min(kLongestWait, kFirstWait * (int64_t{1} << std::min(attempt - 1, 10)));
}

}  // namespace

int Storage::Open(const std::string& path) const {
  // O_NONBLOCK: a pipe that is named as a file must not hold the thread that opens it.
  return open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}

ssize_t Storage::ReadAt(int fd, void* to, size_t count, off_t offset) const {
  return pread(fd, to, count, offset);
}

int Storage::Stat(const std::string& path, struct stat* info) const {
  return stat(path.c_str(), info);
}

bool Storage::HasEntries(const std::string& folder) const {
  DIR* const entries = opendir(folder.c_str());
  if (entries == nullptr) return false;
  bool found = false;
  while (const dirent* entry = found ? nullptr : readdir(entries)) {
    found = std::strcmp(entry->d_name, ".") != 0 && std::strcmp(entry->d_name, "..") != 0;
  }
  closedir(entries);
  return found;
}

Storage::Trouble::Trouble(Storage* storage, const absl::Status& status) : storage_(storage) {
  const std::lock_guard telling_lock(storage_->telling_);
  bool tells = false;
  {
    const std::lock_guard lock(storage_->mutex_);
    ++storage_->troubles_;
    storage_->trouble_ = std::string(status.message());
    const absl::Time now = absl::Now();
    tells = storage_->options_.on_trouble && !storage_->stopped_ &&
            storage_->options_.retry > absl::ZeroDuration() && now - storage_->told_ >= kTellPeriod;
    if (tells) storage_->told_ = now;
  }
  if (!tells) return;
  storage_->options_.on_trouble(absl::StrCat(status.message(), "; trying again for up to ",
                                             absl::FormatDuration(storage_->options_.retry)));
}

Storage::Trouble::~Trouble() {
  const std::lock_guard lock(storage_->mutex_);
  if (--storage_->troubles_ == 0) storage_->trouble_.clear();
}

bool Storage::Trouble::Wait(int32_t attempt) {
  // What is added up are waits, not a clock: time in which this process did not run is no trouble.
  const absl::Duration left = storage_->options_.retry - waited_;
  const bool is_spent = storage_->is_spent_.load(std::memory_order_relaxed);
  if (left <= absl::ZeroDuration() || (attempt > 1 && is_spent)) {
    storage_->is_spent_.store(true, std::memory_order_relaxed);
    return false;
  }
  const absl::Duration wait = std::min(left, WaitAfter(attempt - 1));
  waited_ += wait;
  std::unique_lock lock(storage_->mutex_);
  return !storage_->stop_.wait_for(lock, absl::ToChronoNanoseconds(wait),
                                   [this] { return storage_->stopped_; });
}

void Storage::StopRetries() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  stop_.notify_all();
  const std::lock_guard wait_for_who_tells(telling_);
}

std::string Storage::trouble() const {
  const std::lock_guard lock(mutex_);
  return trouble_;
}

absl::Status StorageError(int error, absl::string_view path, absl::string_view what) {
  const std::string message = absl::StrCat(path, ": ", what, ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case ENAMETOOLONG:
    case ELOOP:
      return absl::InvalidArgumentError(message);
    default:
      return absl::UnavailableError(message);
  }
}

}  // namespace omni::dataloader
