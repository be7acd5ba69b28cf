// Programs as child processes, for end-to-end tests. They die with the thread that started them,
// however it ends.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace omni::test {

class ChildProcess {
 public:
  // Starts `program`, found on PATH; its output goes to a file of the test's temporary folder, or
  // to `output` (a terminal, a pipe with a name), its input comes from the file `input`. One that
  // can't be started ends with exit code 127.
  ChildProcess(const std::string& program, const std::vector<std::string>& arguments,
               const std::string& input = "/dev/null", const std::string& output = "");
  ~ChildProcess();  // kills it
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  std::vector<pid_t> children() const;  // oldest first: the workers by rank
  std::string output() const;           // stdout and stderr so far
  // Exit code, or 128 + signal; -1 if it has not ended within `limit`.
  int Wait(absl::Duration limit = absl::Minutes(5));

 private:
  pid_t pid_ = -1;
  std::string output_path_;
  bool reaped_ = false;
  int code_ = -1;
};

// `omnitrain <arguments>` of this build.
class OmnitrainProcess : public ChildProcess {
 public:
  explicit OmnitrainProcess(const std::vector<std::string>& arguments,
                            const std::string& output = "")
      : ChildProcess(OMNI_BINARY, arguments, "/dev/null", output) {}
};

// False also of a process that has ended and that nobody has waited for yet.
bool IsAlive(pid_t pid);

// Polls until `done` or `limit`; false at the limit.
bool WaitFor(const std::function<bool()>& done, absl::Duration limit = absl::Minutes(5));

}  // namespace omni::test
