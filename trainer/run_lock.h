// One job at a time in a run directory.
//
// `RUN/.lock` is held with flock while a job runs, and says who holds it. Why a directory can't be
// taken has four different answers: another job uses it, its file system is read-only, it belongs
// to somebody else, or something is broken. Without flock (Lustre mounted without -o flock) a
// weaker guard stands in: the holder writes a growing number into the file, and who comes looks
// whether it grows. The same guard is asked where flock may only mean this machine, on network file
// systems (NFS and Lustre with local locks), when another machine was the last to write.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/base/unique_fd.h"

namespace omni::trainer {

struct RunLockOptions {
  absl::Duration beat = absl::Seconds(2);    // how often a holder without flock writes
  absl::Duration watch = absl::Seconds(15);  // how long a newcomer looks whether it does
  // System calls; others in tests. -1 and errno.
  std::function<int(const char* path, int flags)> open = {};
  std::function<int(int fd)> lock = {};  // flock(fd, LOCK_EX | LOCK_NB)
  // Whether flock on this file system is this machine's alone to answer.
  std::function<bool(int fd)> locks_by_itself = {};
  std::string boot = {};  // this machine since it started; "": the kernel's
};

class RunLock {
 public:
  // Makes the directory with its folders if need be.
  //   FailedPrecondition   another job is using it: its pid, host and since when
  //   PermissionDenied     read-only, or somebody else's
  //   Unavailable          anything else, as the system puts it
  static absl::StatusOr<std::unique_ptr<RunLock>> Take(const std::string& run_dir,
                                                       RunLockOptions options = {});
  ~RunLock();  // gives it back, and says so in the file

  // For the person, where the guard is the weaker one; else "".
  const std::string& note() const { return note_; }

 private:
  struct Beating;
  RunLock() = default;

  UniqueFd fd_;
  std::string path_, holder_, note_;
  std::shared_ptr<Beating>
      beating_;  // shared with its thread, which a stalled file system may hold
};

}  // namespace omni::trainer
