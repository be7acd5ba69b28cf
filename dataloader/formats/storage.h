// How data are read, and what becomes of a system call that fails: the one place of that rule.
//
// An errno is the environment's, never a sample's: it is Unavailable, naming file and errno. Retry
// tries again with back-off while that lasts, says so once, and then lets the step fail. DataLoss
// is for content: bytes that were read and are wrong. A file that is not there is either, and only
// the store that wanted it can tell which (see json_store.cc).
#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace omni::dataloader {

// Threads may share one. The virtual methods are system calls: tests put errors in their place.
class Storage {
 public:
  struct Options {
    absl::Duration retry = absl::ZeroDuration();  // how long a call that fails is tried again
    // Told when a file begins to fail, on the thread that reads it, and at most once a minute. May
    // be empty.
    std::function<void(const std::string& text)> on_trouble = {};
  };
  Storage() : Storage(Options()) {}
  explicit Storage(Options options) : options_(std::move(options)) {}
  virtual ~Storage() = default;

  // A descriptor, or -1 and errno.
  virtual int Open(const std::string& path) const;
  // As pread.
  virtual ssize_t ReadAt(int fd, void* to, size_t count, off_t offset) const;
  // 0, or -1 and errno.
  virtual int Stat(const std::string& path, struct stat* info) const;
  // Whether a folder has anything in it; false if it can't be listed.
  virtual bool HasEntries(const std::string& folder) const;

  // Calls `attempt(n)`, n = 0, 1, ..., until what it returns is not Unavailable, or Options::retry
  // is over, or StopRetries is called; returns the last result. `attempt` returns a Status or a
  // StatusOr. The second call follows the first at once: a stale handle needs only to be opened
  // again. When the time is over it stays so until a call succeeds: the other files of a folder
  // that is gone are not waited for one by one.
  template <typename Attempt>
  auto Retry(const Attempt& attempt) -> std::invoke_result_t<Attempt, int32_t> {
    auto result = attempt(0);
    if (IsUnavailable(result)) {
      Trouble trouble(this, ToStatus(result));
      for (int32_t n = 1; IsUnavailable(result) && trouble.Wait(n); ++n) result = attempt(n);
    }
    if (!IsUnavailable(result)) is_spent_.store(false, std::memory_order_relaxed);
    return result;
  }
  // From now on nothing is tried again, who waits to returns, and on_trouble is called no more: a
  // thread that storage holds may outlive whom it would tell.
  void StopRetries();
  // What is being tried again just now, "" if nothing: for messages of those who wait for it.
  std::string trouble() const;

 private:
  // One call that fails, while it is tried again.
  class Trouble {
   public:
    Trouble(Storage* storage, const absl::Status& status);
    ~Trouble();
    bool Wait(int32_t attempt);  // false: it is over

   private:
    Storage* const storage_;
    absl::Duration waited_;
  };

  static const absl::Status& ToStatus(const absl::Status& status) { return status; }
  template <typename T>
  static const absl::Status& ToStatus(const absl::StatusOr<T>& result) {
    return result.status();
  }
  template <typename T>
  static bool IsUnavailable(const T& result) {
    return absl::IsUnavailable(ToStatus(result));
  }

  const Options options_;
  std::mutex telling_;        // held while on_trouble runs; taken before mutex_
  mutable std::mutex mutex_;  // of what follows
  std::condition_variable stop_;
  bool stopped_ = false;
  std::atomic<bool> is_spent_{false};  // the time of a call was over, and none has succeeded since
  int32_t troubles_ = 0;               // under way
  std::string trouble_;                // the newest of them
  absl::Time told_ = absl::InfinitePast();
};

// "path: what: reason" for an errno of reading data. NotFound: there is no such file.
// InvalidArgument: no file can have this name. Unavailable: everything else.
absl::Status StorageError(int error, absl::string_view path, absl::string_view what);

}  // namespace omni::dataloader
