#include "tests/e2e/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <fstream>
#include <sstream>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "runtime/base/check.h"

namespace omni::test {

// fork and not posix_spawn: only the child itself can ask to die with its parent.
ChildProcess::ChildProcess(const std::string& program, const std::vector<std::string>& arguments,
                           const std::string& input, const std::string& output) {
  static std::atomic<int> count = 0;
  output_path_ =
      absl::StrFormat("%s/process-%d-%d.out", ::testing::TempDir(), getpid(), count.fetch_add(1));
  std::vector<std::string> words = {program};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const std::string target = output.empty() ? output_path_ : output;
  unlink(output_path_.c_str());  // of an earlier run with this id: the child makes it anew, later
  const pid_t parent = getpid();
  pid_ = fork();
  OMNI_CHECK(pid_ >= 0);
  if (pid_ > 0) return;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const int in = open(input.c_str(), O_RDONLY | O_CLOEXEC);
  const int out = open(target.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_NOCTTY | O_CLOEXEC, 0644);
  if (getppid() == parent && dup2(in, STDIN_FILENO) >= 0 && dup2(out, STDOUT_FILENO) >= 0 &&
      dup2(out, STDERR_FILENO) >= 0) {
    execvp(argv[0], argv.data());
  }
  _exit(127);
}

ChildProcess::~ChildProcess() {
  if (reaped_) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

std::vector<pid_t> ChildProcess::children() const {
  std::vector<pid_t> children;
  std::ifstream file(absl::StrFormat("/proc/%d/task/%d/children", pid_, pid_));
  for (pid_t child; file >> child;) children.push_back(child);
  return children;
}

std::string ChildProcess::output() const {
  std::ifstream file(output_path_);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

int ChildProcess::Wait(absl::Duration limit) {
  WaitFor(
      [&] {
        int status = 0;
        if (!reaped_ && waitpid(pid_, &status, WNOHANG) == pid_) {
          reaped_ = true;
          code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
        return reaped_;
      },
      limit);
  return code_;
}

bool IsAlive(pid_t pid) {
  std::ifstream file(absl::StrFormat("/proc/%d/stat", pid));
  std::string text;
  std::getline(file, text);  // "pid (name) state ..."
  const size_t end = text.rfind(") ");
  return end != std::string::npos && text[end + 2] != 'Z' && text[end + 2] != 'X';
}

bool WaitFor(const std::function<bool()>& done, absl::Duration limit) {
  const absl::Time end = absl::Now() + limit;
  while (!done()) {
    if (absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

}  // namespace omni::test
