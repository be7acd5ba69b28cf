#include "tests/e2e/terminal.h"

#include <fcntl.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

#include "runtime/base/check.h"
#include "tests/e2e/process.h"

namespace omni::test {

TerminalProcess::TerminalProcess(const std::vector<std::string>& arguments, int columns,
                                 const std::vector<std::string>& environment) {
  std::vector<char*> argv;
  for (const std::string& word : arguments) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  const winsize size{.ws_row = 24, .ws_col = static_cast<unsigned short>(columns)};
  pid_ = forkpty(&master_, nullptr, nullptr, &size);
  OMNI_CHECK(pid_ >= 0);
  if (pid_ > 0) {
    fcntl(master_, F_SETFL, O_NONBLOCK);
    fcntl(master_, F_SETFD, FD_CLOEXEC);
    return;
  }
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (const std::string& entry : environment) putenv(const_cast<char*>(entry.c_str()));
  execvp(argv[0], argv.data());
  _exit(127);
}

TerminalProcess::~TerminalProcess() {
  HangUp();
  if (pid_ < 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

void TerminalProcess::Resize(int columns) {
  const winsize size{.ws_row = 24, .ws_col = static_cast<unsigned short>(columns)};
  OMNI_CHECK(ioctl(master_, TIOCSWINSZ, &size) == 0);
}

void TerminalProcess::HangUp() {
  if (master_ >= 0) close(master_);
  master_ = -1;
}

const std::string& TerminalProcess::Read() {
  char buffer[4096];
  for (ssize_t count; master_ >= 0 && (count = read(master_, buffer, sizeof(buffer))) > 0;) {
    output_.append(buffer, static_cast<size_t>(count));
  }
  return output_;
}

int TerminalProcess::Wait(absl::Duration limit) {
  int code = -1;
  WaitFor(
      [&] {
        Read();
        int status = 0;
        if (waitpid(pid_, &status, WNOHANG) != pid_) return false;
        code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        return true;
      },
      limit);
  if (code >= 0) pid_ = -1;
  Read();
  return code;
}

}  // namespace omni::test
