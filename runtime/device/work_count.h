// What the kernels a thread launches count for: each that ends, and each task of one, is a tick of
// the rank's Progress. So a kernel that takes longer than a deadline shows that it gets on.
//
//   const WorkCount scope(progress);
//   ... ops, which know nothing of it ...
//
// A scope and no argument, for it would be one of every op. Threads of one process may be ranks:
// each has its own.
#pragma once

#include <memory>

#include "runtime/base/progress.h"

namespace omni {

class WorkCount {
 public:
  // For what this thread launches until the scope ends; the inner of two counts.
  explicit WorkCount(std::shared_ptr<Progress> progress);
  ~WorkCount();
  WorkCount(const WorkCount&) = delete;
  WorkCount& operator=(const WorkCount&) = delete;

  // Null outside of any scope.
  static std::shared_ptr<Progress> OfThread();

 private:
  const std::shared_ptr<Progress> before_;  // shared with kernels that have not run yet
};

}  // namespace omni
