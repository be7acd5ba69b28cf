#include "tests/e2e/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <sstream>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "runtime/base/check.h"

extern char** environ;

namespace omni::test {

OmnitrainProcess::OmnitrainProcess(const std::vector<std::string>& arguments) {
  static int count = 0;
  output_path_ = absl::StrFormat("%s/omnitrain-%d-%d.out", ::testing::TempDir(), getpid(), count++);
  std::vector<std::string> words = {OMNI_BINARY};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, output_path_.c_str(),
                                   O_CREAT | O_TRUNC | O_WRONLY, 0644);
  posix_spawn_file_actions_adddup2(&files, STDOUT_FILENO, STDERR_FILENO);
  OMNI_CHECK_EQ(posix_spawn(&pid_, OMNI_BINARY, &files, nullptr, argv.data(), environ), 0);
  posix_spawn_file_actions_destroy(&files);
}

OmnitrainProcess::~OmnitrainProcess() {
  if (reaped_) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

std::vector<pid_t> OmnitrainProcess::children() const {
  std::vector<pid_t> children;
  std::ifstream file(absl::StrFormat("/proc/%d/task/%d/children", pid_, pid_));
  for (pid_t child; file >> child;) children.push_back(child);
  return children;
}

std::string OmnitrainProcess::output() const {
  std::ifstream file(output_path_);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

int OmnitrainProcess::Wait(absl::Duration limit) {
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

bool WaitFor(const std::function<bool()>& done, absl::Duration limit) {
  const absl::Time end = absl::Now() + limit;
  while (!done()) {
    if (absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

}  // namespace omni::test
