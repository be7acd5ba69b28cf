// The omnitrain binary as a child process, for end-to-end tests.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace omni::test {

class OmnitrainProcess {
 public:
  // Starts `omnitrain <arguments>`; its output goes to a file of the test's temporary folder.
  explicit OmnitrainProcess(const std::vector<std::string>& arguments);
  ~OmnitrainProcess();  // kills it
  OmnitrainProcess(const OmnitrainProcess&) = delete;
  OmnitrainProcess& operator=(const OmnitrainProcess&) = delete;

  pid_t pid() const { return pid_; }
  std::vector<pid_t> children() const;  // oldest first: the workers by rank
  std::string output() const;           // stdout and stderr so far
  // Exit code, or 128 + signal; -1 if it has not ended within `limit`.
  int Wait(absl::Duration limit = absl::Seconds(120));

 private:
  pid_t pid_ = -1;
  std::string output_path_;
  bool reaped_ = false;
  int code_ = -1;
};

// Polls until `done` or `limit`; false at the limit.
bool WaitFor(const std::function<bool()>& done, absl::Duration limit = absl::Seconds(120));

}  // namespace omni::test
