#include "tools/launch.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/base/working_clock.h"

extern char** environ;

namespace omni::tools {

absl::StatusOr<WorkerProcesses> WorkerProcesses::Start(const std::string& coordinator_address,
                                                       int32_t num_workers) {
  WorkerProcesses workers;
  for (int32_t rank = 0; rank < num_workers; ++rank) {
    std::vector<std::string> arguments = {"omnitrain",     "worker",
                                          "--coordinator", coordinator_address,
                                          "--rank",        absl::StrCat(rank),
                                          "--local-rank",  absl::StrCat(rank),
                                          "--parent",      absl::StrCat(getpid())};
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    // A process group of their own: Ctrl-C reaches us alone, and we stop them in good order.
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
    posix_spawnattr_setpgroup(&attributes, 0);
    pid_t pid = 0;
    const int error =
        posix_spawn(&pid, "/proc/self/exe", nullptr, &attributes, argv.data(), environ);
    posix_spawnattr_destroy(&attributes);
    if (error != 0) {
      return absl::UnavailableError(
          absl::StrCat("worker ", rank, " can't be started: ", std::strerror(error)));
    }
    workers.processes_.push_back({pid, rank});
  }
  return workers;
}

WorkerProcesses::~WorkerProcesses() {
  Signal(SIGKILL);
  // One in a call that can't be interrupted (a disk that is gone) stays for now.
  const WorkingClock& clock = WorkingClock::OfProcess();
  const absl::Duration start = clock.Now();
  for (Process& process : processes_) {
    while (!process.exited && clock.Now() - start < absl::Seconds(5)) {
      process.exited = waitpid(process.pid, nullptr, WNOHANG) != 0;
      if (!process.exited) absl::SleepFor(absl::Milliseconds(5));
    }
  }
}

void WorkerProcesses::Signal(int signal) const {
  for (const Process& process : processes_) {
    if (!process.exited) kill(process.pid, signal);
  }
}

void WorkerProcesses::Poll(scheduler::Coordinator& coordinator) {
  // Who was killed before who then gave up because of it: the job has one cause.
  std::string killed, gave_up;
  for (Process& process : processes_) {
    if (process.exited) continue;
    int status = 0;
    if (waitpid(process.pid, &status, WNOHANG) != process.pid) continue;
    process.exited = true;
    const std::string who = absl::StrCat("rank ", process.rank, " (pid ", process.pid, ")");
    if (WIFSIGNALED(status) && killed.empty()) {
      killed = absl::StrCat(who, " was killed by signal ", WTERMSIG(status), " (",
                            strsignal(WTERMSIG(status)), ")");
    } else if (!WIFSIGNALED(status) && WEXITSTATUS(status) != 0 && gave_up.empty()) {
      gave_up = absl::StrCat(who, " ended with exit code ", WEXITSTATUS(status));
    }
  }
  if (!killed.empty()) {
    coordinator.Fail(killed);
  } else if (!gave_up.empty()) {
    coordinator.Fail(gave_up, /*is_consequence=*/true);  // it will have said why
  }
}

bool WorkerProcesses::AllExited() const {
  for (const Process& process : processes_) {
    if (!process.exited) return false;
  }
  return true;
}

bool WorkerProcesses::WaitAll(scheduler::Coordinator& coordinator, absl::Duration limit) {
  const WorkingClock& clock = WorkingClock::OfProcess();
  const absl::Duration start = clock.Now();
  for (;;) {
    Poll(coordinator);
    if (AllExited()) return true;
    if (clock.Now() - start > limit) return false;
    absl::SleepFor(absl::Milliseconds(20));
  }
}

}  // namespace omni::tools
