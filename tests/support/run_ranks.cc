#include "tests/support/run_ranks.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <mutex>
#include <sstream>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "runtime/comm/shm.h"
#include "runtime/comm/tcp.h"

extern char** environ;

namespace omni::test {
namespace {

constexpr char kSpawnVariable[] = "OMNI_TEST_RANK";  // program|rank|size|argument

struct Run {
  std::mutex mutex;  // guards the rest
  std::condition_variable ended;
  int32_t running = 0;
  absl::Status first_error;
  std::vector<std::unique_ptr<Communicator>> comms;
};

}  // namespace

absl::Status RunRanks(int32_t world_size, absl::string_view engine, const RankFn& fn,
                      const CommOptions& options, absl::Duration deadline) {
  Run run;
  std::vector<TcpListener> listeners;
  std::vector<std::string> addresses;
  run.comms.resize(world_size);
  if (engine == "shm") {
    auto created = CreateShmCommunicators(world_size, options);
    if (!created.ok()) return created.status();
    run.comms = *std::move(created);
  } else {
    OMNI_CHECK(engine == "tcp");
    for (int32_t rank = 0; rank < world_size; ++rank) {
      OMNI_ASSIGN_OR_RETURN(TcpListener listener, TcpListener::Create("127.0.0.1"));
      addresses.push_back(listener.address());
      listeners.push_back(std::move(listener));
    }
  }
  run.running = world_size;
  std::vector<std::thread> threads;
  for (int32_t rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&, rank] {
      absl::Status status;
      if (engine == "tcp") {
        auto connected = ConnectTcp(std::move(listeners[rank]), addresses, rank, options);
        status = connected.status();
        const std::lock_guard<std::mutex> lock(run.mutex);
        if (connected.ok()) run.comms[rank] = *std::move(connected);
      }
      Communicator* comm;
      {
        const std::lock_guard<std::mutex> lock(run.mutex);
        comm = run.comms[rank].get();
      }
      if (comm != nullptr) status = fn(*comm, rank);
      std::unique_ptr<Communicator> ending;
      {
        const std::lock_guard<std::mutex> lock(run.mutex);
        if (!status.ok() && run.first_error.ok()) {
          run.first_error = Annotate(status, absl::StrCat("rank ", rank));
        }
        ending = std::move(run.comms[rank]);
      }
      ending.reset();
      const std::lock_guard<std::mutex> lock(run.mutex);
      --run.running;
      run.ended.notify_all();
    });
  }
  {
    std::unique_lock<std::mutex> lock(run.mutex);
    const auto all_ended = [&run] { return run.running == 0; };
    if (!run.ended.wait_for(lock, absl::ToChronoNanoseconds(deadline), all_ended)) {
      for (const auto& comm : run.comms) {
        if (comm != nullptr) comm->Abort("the test's deadline has passed");
      }
      if (run.first_error.ok()) {
        run.first_error = absl::DeadlineExceededError(absl::StrCat(run.running, " of ", world_size,
                                                                   " ranks have not ended after ",
                                                                   absl::FormatDuration(deadline)));
      }
      if (!run.ended.wait_for(lock, std::chrono::seconds(30), all_ended)) {
        CheckFailed(__FILE__, __LINE__, "a rank does not end even though it was aborted");
      }
    }
  }
  for (std::thread& thread : threads) thread.join();
  const std::lock_guard<std::mutex> lock(run.mutex);
  return run.first_error;
}

absl::StatusOr<std::unique_ptr<Communicator>> JoinWorld(absl::string_view engine,
                                                        const std::string& name, int32_t rank,
                                                        int32_t size, const CommOptions& options) {
  constexpr int64_t kLength = 64;
  OMNI_ASSIGN_OR_RETURN(auto shm, ConnectShm(name, rank, size, options));
  if (engine == "shm") return shm;
  OMNI_ASSIGN_OR_RETURN(TcpListener listener, TcpListener::Create("127.0.0.1"));
  std::vector<char> mine(kLength), all(kLength * size);
  std::memcpy(mine.data(), listener.address().data(), listener.address().size());
  const auto view = [](std::vector<char>& text) {
    return TensorView::Dense(text.data(), DType::kUInt8, DeviceKind::kCpu,
                             {static_cast<int64_t>(text.size())});
  };
  const std::vector<int64_t> counts(size, kLength);
  OMNI_RETURN_IF_ERROR(
      shm->AllGather(view(mine), view(all), counts)->WaitHost(options.connect_deadline));
  std::vector<std::string> addresses;
  for (int32_t r = 0; r < size; ++r) addresses.emplace_back(all.data() + r * kLength);
  return ConnectTcp(std::move(listener), addresses, rank, options);
}

void RunAsRankIfSpawned(const std::map<std::string, RankProgram>& programs) {
  const char* text = std::getenv(kSpawnVariable);
  if (text == nullptr) return;
  const std::vector<std::string> parts = absl::StrSplit(text, absl::MaxSplits('|', 3));
  OMNI_CHECK_EQ(parts.size(), size_t{4});
  int32_t rank, size;
  OMNI_CHECK(absl::SimpleAtoi(parts[1], &rank) && absl::SimpleAtoi(parts[2], &size));
  const auto program = programs.find(parts[0]);
  OMNI_CHECK(program != programs.end());
  const int code = program->second(rank, size, parts[3]);
  std::fflush(stdout);
  std::exit(code);
}

RankProcesses::RankProcesses(const std::string& program, int32_t size, const std::string& argument)
    : ranks_(size) {
  for (int32_t rank = 0; rank < size; ++rank) {
    int ends[2];
    OMNI_CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    std::string variable =
        absl::StrCat(kSpawnVariable, "=", program, "|", rank, "|", size, "|", argument);
    std::vector<char*> environment;
    for (char** entry = environ; *entry != nullptr; ++entry) environment.push_back(*entry);
    environment.push_back(variable.data());
    environment.push_back(nullptr);
    std::string path = "/proc/self/exe", name = program;
    char* arguments[] = {name.data(), nullptr};
    OMNI_CHECK_EQ(posix_spawn(&ranks_[rank].pid, path.c_str(), &actions, nullptr, arguments,
                              environment.data()),
                  0);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    ranks_[rank].output = ends[0];
  }
}

RankProcesses::~RankProcesses() {
  for (size_t rank = 0; rank < ranks_.size(); ++rank) {
    Signal(static_cast<int32_t>(rank), SIGKILL);
    Wait(static_cast<int32_t>(rank));
    close(ranks_[rank].output);
  }
}

void RankProcesses::Signal(int32_t rank, int signal) {
  if (!ranks_[rank].reaped) kill(ranks_[rank].pid, signal);
}

std::string RankProcesses::ReadLine(int32_t rank, absl::Duration deadline) {
  Rank& from = ranks_[rank];
  const absl::Time until = absl::Now() + deadline;
  while (true) {
    if (const size_t end = from.buffer.find('\n'); end != std::string::npos) {
      std::string line = from.buffer.substr(0, end);
      from.buffer.erase(0, end + 1);
      return line;
    }
    const double left_ms = absl::ToDoubleMilliseconds(until - absl::Now());
    if (left_ms <= 0) return "";
    pollfd entry = {.fd = from.output, .events = POLLIN, .revents = 0};
    if (poll(&entry, 1, static_cast<int>(left_ms) + 1) <= 0) continue;
    char buffer[4096];
    const ssize_t got = read(from.output, buffer, sizeof(buffer));
    if (got <= 0) return std::exchange(from.buffer, "");
    from.buffer.append(buffer, got);
  }
}

int RankProcesses::Wait(int32_t rank, absl::Duration deadline) {
  Rank& child = ranks_[rank];
  const absl::Time until = absl::Now() + deadline;
  while (!child.reaped) {
    int status = 0;
    if (waitpid(child.pid, &status, WNOHANG) == child.pid) {
      child.reaped = true;
      child.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      break;
    }
    if (absl::Now() >= until) return -1;
    absl::SleepFor(absl::Milliseconds(2));
  }
  return child.code;
}

int64_t CountOpenFds() {
  int64_t count = -3;  // ".", ".." and the directory's own
  DIR* directory = opendir("/proc/self/fd");
  OMNI_CHECK(directory != nullptr);
  while (readdir(directory) != nullptr) ++count;
  closedir(directory);
  return count;
}

bool SocketsExist(const std::string& name) {
  std::ifstream file("/proc/net/unix");
  std::stringstream text;
  text << file.rdbuf();
  return text.str().find(name) != std::string::npos;
}

}  // namespace omni::test
