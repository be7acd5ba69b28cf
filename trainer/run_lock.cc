#include "trainer/run_lock.h"

#include <fcntl.h>
#include <pwd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "runtime/base/address.h"
#include "runtime/base/file.h"
#include "runtime/base/process.h"
#include "runtime/base/status.h"

namespace omni::trainer {
namespace {

namespace fs = std::filesystem;

// File systems of this machine alone: ext, xfs, btrfs, tmpfs, overlay, zfs, f2fs, ramfs.
bool IsOfThisMachine(int fd) {
  struct statfs about = {};
  if (fstatfs(fd, &about) != 0) return false;
  for (const int64_t kind : {0xEF53LL, 0x58465342LL, 0x9123683ELL, 0x01021994LL, 0x794C7630LL,
                             0x2FC12FC1LL, 0xF2F52010LL, 0x858458F6LL}) {
    if (static_cast<int64_t>(about.f_type) == kind) return true;
  }
  return false;
}

// What the file says, one `key: value` a line.
struct Holder {
  int64_t pid = 0;
  int64_t started = 0;  // of the process, in the machine's clock ticks: ids come again
  std::string host, boot, space, since;
  int64_t beats = 0;
  bool has_left = false;
};

std::string Text(const Holder& holder) {
  return absl::StrCat("pid: ", holder.pid, "\nstarted: ", holder.started, "\nhost: ", holder.host,
                      "\nboot: ", holder.boot, "\nspace: ", holder.space, "\nsince: ", holder.since,
                      "\nbeats: ", holder.beats, "\nleft: ", holder.has_left ? "yes" : "no", "\n");
}

std::optional<Holder> ReadHolder(const std::string& path) {
  const auto text = ReadFile(path);
  if (!text.ok() || text->empty()) return std::nullopt;
  Holder holder;
  for (absl::string_view line : absl::StrSplit(*text, '\n')) {
    const std::pair<absl::string_view, absl::string_view> pair =
        absl::StrSplit(line, absl::MaxSplits(": ", 1));
    if (pair.first == "pid") (void)absl::SimpleAtoi(pair.second, &holder.pid);
    if (pair.first == "host") holder.host = std::string(pair.second);
    if (pair.first == "started") (void)absl::SimpleAtoi(pair.second, &holder.started);
    if (pair.first == "boot") holder.boot = std::string(pair.second);
    if (pair.first == "space") holder.space = std::string(pair.second);
    if (pair.first == "since") holder.since = std::string(pair.second);
    if (pair.first == "beats") (void)absl::SimpleAtoi(pair.second, &holder.beats);
    if (pair.first == "left") holder.has_left = pair.second == "yes";
  }
  if (holder.pid == 0) return std::nullopt;
  return holder;
}

// In place: another process may have the file open, and its lock goes with the file.
bool WriteHolder(int fd, const Holder& holder) {
  const std::string text = Text(holder);
  return pwrite(fd, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()) &&
         ftruncate(fd, static_cast<off_t>(text.size())) == 0;
}

std::string UserName(uid_t uid) {
  passwd entry = {};
  passwd* found = nullptr;
  std::vector<char> buffer(1 << 14);
  if (getpwuid_r(uid, &entry, buffer.data(), buffer.size(), &found) != 0 || found == nullptr) {
    return absl::StrCat("user ", uid);
  }
  return found->pw_name;
}

// Whose the nearest part of the path is that exists.
std::string OwnerOf(fs::path path) {
  struct stat about = {};
  while (stat(path.c_str(), &about) != 0) {
    if (!path.has_relative_path()) return "somebody";
    path = path.parent_path();
  }
  return absl::StrCat(path.string(), " belongs to ", UserName(about.st_uid));
}

absl::Status CantBeUsed(const std::string& run_dir, const std::string& path, int error) {
  const std::string where = absl::StrCat("run directory ", run_dir, ": ");
  if (error == EROFS) {
    return absl::PermissionDeniedError(
        absl::StrCat(where, "its file system is read-only (", path, "); take another --run-dir"));
  }
  if (error == EACCES || error == EPERM) {
    std::error_code ignored;
    return absl::PermissionDeniedError(
        absl::StrCat(where, UserName(geteuid()), " may not write there (", path,
                     "): ", OwnerOf(fs::absolute(path, ignored)), "; take another --run-dir"));
  }
  return Annotate(FileError(error, path, "can't be opened"),
                  absl::StrCat("run directory ", run_dir));
}

absl::Status InUse(const std::string& run_dir, const std::optional<Holder>& holder,
                   absl::string_view how = "") {
  return absl::FailedPreconditionError(
      holder.has_value()
          ? absl::StrCat("run directory ", run_dir, " is in use by another job: pid ", holder->pid,
                         " on ", holder->host, " since ", holder->since, how)
          : absl::StrCat("run directory ", run_dir, " is in use by another job", how));
}

// When a process began, in clock ticks since the machine did; 0 if there is none.
int64_t StartOf(int64_t pid) {
  const auto text = ReadFile(absl::StrCat("/proc/", pid, "/stat"));
  if (!text.ok()) return 0;
  const size_t end = text->rfind(") ");  // the name before it may have anything in it
  if (end == std::string::npos) return 0;
  const std::vector<std::string> fields = absl::StrSplit(text->substr(end + 2), ' ');
  int64_t start = 0;
  return fields.size() > 19 && absl::SimpleAtoi(fields[19], &start) ? start : 0;
}

Holder ThisProcess(const RunLockOptions& options) {
  char space[64] = {};
  if (readlink("/proc/self/ns/pid", space, sizeof(space) - 1) < 0) space[0] = '\0';
  return {.pid = getpid(),
          .started = StartOf(getpid()),
          .host = MachineName(),
          .boot = options.boot,
          .space = space,
          .since = absl::FormatTime("%Y-%m-%d %H:%M:%S", absl::Now(), absl::LocalTimeZone())};
}

// Whether the holder in the file still holds, where flock does not say it. OK if not.
absl::Status AskHolder(const std::string& run_dir, const std::string& path, const Holder& before,
                       const Holder& self, bool has_flock, const RunLockOptions& options) {
  if (before.has_left) return absl::OkStatus();
  const bool is_here = before.boot == self.boot;
  if (is_here && has_flock) return absl::OkStatus();  // it would have been in the way
  if (is_here && before.space == self.space) {
    const bool is_alive = StartOf(before.pid) == before.started;
    return is_alive ? InUse(run_dir, before) : absl::OkStatus();
  }
  const absl::Time end = absl::Now() + options.watch;
  while (absl::Now() < end) {
    absl::SleepFor(std::min(options.beat / 2, end - absl::Now()));
    const std::optional<Holder> now = ReadHolder(path);
    if (now.has_value() && now->has_left) break;
    if (now.has_value() && now->beats != before.beats) return InUse(run_dir, now);
  }
  return absl::OkStatus();
}

RunLockOptions Completed(RunLockOptions options) {
  if (!options.open)
    options.open = [](const char* path, int flags) { return open(path, flags, 0644); };
  if (!options.lock) options.lock = [](int fd) { return flock(fd, LOCK_EX | LOCK_NB); };
  if (!options.locks_by_itself) options.locks_by_itself = IsOfThisMachine;
  if (options.boot.empty()) {
    const auto boot = ReadFile("/proc/sys/kernel/random/boot_id");
    options.boot = boot.ok() ? std::string(absl::StripAsciiWhitespace(*boot)) : MachineName();
  }
  return options;
}

absl::Status MakeFolders(const std::string& run_dir) {
  for (const char* folder : {"", "/logs", "/traces", "/checkpoints"}) {
    std::error_code error;
    fs::create_directories(run_dir + folder, error);
    if (!error) continue;
    if (error.value() == EROFS || error.value() == EACCES || error.value() == EPERM) {
      return CantBeUsed(run_dir, run_dir + folder, error.value());
    }
    return absl::InvalidArgumentError(
        absl::StrCat("run directory ", run_dir, folder, ": ", error.message()));
  }
  return absl::OkStatus();
}

}  // namespace

struct RunLock::Beating {
  std::mutex mutex;
  std::condition_variable changed;
  bool stop = false, stopped = false;
};

absl::StatusOr<std::unique_ptr<RunLock>> RunLock::Take(const std::string& run_dir,
                                                       RunLockOptions given) {
  const RunLockOptions options = Completed(std::move(given));
  OMNI_RETURN_IF_ERROR(MakeFolders(run_dir));
  std::unique_ptr<RunLock> lock(new RunLock);
  lock->path_ = run_dir + "/.lock";
  lock->fd_ = UniqueFd(options.open(lock->path_.c_str(), O_CREAT | O_RDWR | O_CLOEXEC));
  if (!lock->fd_.valid()) return CantBeUsed(run_dir, lock->path_, errno);
  const int locked = options.lock(lock->fd_.get());
  const int error = errno;
  const std::optional<Holder> before = ReadHolder(lock->path_);
  const bool has_flock = locked == 0;
  if (!has_flock && error == EWOULDBLOCK) return InUse(run_dir, before);
  const bool is_missing =
      error == ENOSYS || error == ENOTSUP || error == EOPNOTSUPP || error == ENOLCK;
  if (!has_flock && !is_missing) {
    return Annotate(FileError(error, lock->path_, "can't be locked"),
                    absl::StrCat("run directory ", run_dir));
  }
  const bool is_weak = !has_flock || !options.locks_by_itself(lock->fd_.get());
  Holder holder = ThisProcess(options);
  if (is_weak && before.has_value()) {
    OMNI_RETURN_IF_ERROR(AskHolder(run_dir, lock->path_, *before, holder, has_flock, options));
  }
  holder.beats = before.has_value() ? before->beats + 1 : 1;
  if (!WriteHolder(lock->fd_.get(), holder)) {
    return Annotate(FileError(errno, lock->path_, "writing failed"),
                    absl::StrCat("run directory ", run_dir));
  }
  lock->holder_ = Text([&] {
    Holder left = holder;
    left.has_left = true;
    return left;
  }());
  if (!has_flock) {
    lock->note_ = absl::StrCat(
        "the file system of ", run_dir, " has no file locks (", std::strerror(error),
        "): a second job there is noticed only by what the first writes ", "into .lock");
  }
  if (!is_weak) return lock;
  lock->beating_ = std::make_shared<Beating>();
  // A descriptor of its own: a write that hangs outlives this object.
  const int fd = dup(lock->fd_.get());
  std::thread([beating = lock->beating_, holder, fd, beat = options.beat]() mutable {
    NameThread("run lock");
    const UniqueFd owner(fd);
    std::unique_lock<std::mutex> guard(beating->mutex);
    while (!beating->changed.wait_for(guard, absl::ToChronoNanoseconds(beat),
                                      [&] { return beating->stop; })) {
      ++holder.beats;
      guard.unlock();
      (void)WriteHolder(owner.get(), holder);
      guard.lock();
    }
    beating->stopped = true;
    beating->changed.notify_all();
  }).detach();
  return lock;
}

RunLock::~RunLock() {
  if (!fd_.valid() || holder_.empty()) return;
  if (beating_ != nullptr) {
    std::unique_lock<std::mutex> guard(beating_->mutex);
    beating_->stop = true;
    beating_->changed.notify_all();
    // A storage that stalls does not keep the process.
    if (!beating_->changed.wait_for(guard, std::chrono::seconds(2),
                                    [&] { return beating_->stopped; })) {
      return;
    }
  }
  if (pwrite(fd_.get(), holder_.data(), holder_.size(), 0) ==
      static_cast<ssize_t>(holder_.size())) {
    (void)!ftruncate(fd_.get(), static_cast<off_t>(holder_.size()));
  }
}

}  // namespace omni::trainer
