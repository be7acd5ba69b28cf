#include "runtime/base/process.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "absl/strings/numbers.h"

namespace omni {
namespace {

// Reached by the signal handler, which can be given nothing.
std::atomic<int32_t> num_requests{0};
std::atomic<int64_t> last_request_ms{0};
static_assert(std::atomic<int64_t>::is_always_lock_free);
constexpr int64_t kOneRequestMs = 2000;

void OnStopSignal(int) {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  const int64_t now_ms = int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1000000;
  if (num_requests.load() > 0 && now_ms - last_request_ms.load() < kOneRequestMs) return;
  last_request_ms.store(now_ms);
  num_requests.fetch_add(1);
}

constexpr int32_t kColumns = 80;
constexpr size_t kMaxName = 15;

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

void PrepareProcess() {
  for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
    if (fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    // The lowest free number, which is `fd`: those below it are open by now.
    if (open("/dev/null", O_RDWR) < 0) return;
  }
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
}

void CatchStopSignals() {
  std::signal(SIGTERM, OnStopSignal);
  std::signal(SIGINT, OnStopSignal);
  struct sigaction hangup {};
  if (sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler == SIG_IGN) return;
  std::signal(SIGHUP, OnStopSignal);
}

int32_t NumStopRequests() { return num_requests.load(); }

void NameThread(const std::string& name) {
  pthread_setname_np(pthread_self(), name.substr(0, kMaxName).c_str());
}

bool CanRewriteLines(int fd) {
  const std::string terminal = Environment("TERM");
  return isatty(fd) == 1 && !terminal.empty() && terminal != "dumb";
}

int32_t TerminalColumns(int fd) {
  if (isatty(fd) != 1) return 0;
  winsize size{};
  if (ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  int32_t columns = 0;
  return absl::SimpleAtoi(Environment("COLUMNS"), &columns) && columns > 0 ? columns : kColumns;
}

bool WantsColor(int fd) { return CanRewriteLines(fd) && Environment("NO_COLOR").empty(); }

ProcessTitle::ProcessTitle(int argc, char** argv) {
  // One stretch of memory from the first argument to the end of the last.
  if (argc <= 0 || argv[0] == nullptr) return;
  begin_ = argv[0];
  char* end = begin_;
  for (int i = 0; i < argc && argv[i] == end; ++i) end += std::strlen(argv[i]) + 1;
  size_ = static_cast<size_t>(end - begin_);
}

void ProcessTitle::Set(absl::string_view title, const std::string& name) {
  prctl(PR_SET_NAME, name.substr(0, kMaxName).c_str());
  if (size_ < 3) return;
  const size_t length = std::min(title.size(), size_ - 2);
  std::memset(begin_, 0, size_);
  std::memcpy(begin_, title.data(), length);
  // A last byte that is not 0 tells the system to show the text up to its own end and no more.
  begin_[size_ - 1] = ' ';
}

}  // namespace omni
