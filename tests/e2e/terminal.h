// Programs on a terminal of their own (a pty), as a person has them.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/time/time.h"

namespace omni::test {

class TerminalProcess {
 public:
  // `environment`: "NAME=value", over this process's.
  TerminalProcess(const std::vector<std::string>& arguments, int columns,
                  const std::vector<std::string>& environment = {"TERM=xterm"});
  ~TerminalProcess();  // kills it
  TerminalProcess(const TerminalProcess&) = delete;
  TerminalProcess& operator=(const TerminalProcess&) = delete;

  pid_t pid() const { return pid_; }
  void Resize(int columns);
  void HangUp();  // the window is closed
  // Reads what has come until the program ends or `limit`; its exit code, 128 + signal, or -1.
  int Wait(absl::Duration limit = absl::Minutes(5));
  // What is on the screen's tape so far, with every escape and carriage return.
  const std::string& Read();

 private:
  pid_t pid_ = -1;
  int master_ = -1;
  std::string output_;
};

}  // namespace omni::test
