// Whole tensors, put together from the parts that ranks hold.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/checkpoint/checkpoint.h"
#include "tests/support/equivalence.h"

namespace omni::test {

// Threads may share one.
class Assembly {
 public:
  // What a rank would save (Trainer::StateRanges). Internal if another has brought some of it.
  absl::Status Add(const std::vector<TensorRange>& ranges);
  // Everything; Internal if some of a tensor is missing. Once.
  absl::StatusOr<Tensors> Take();

 private:
  std::mutex mutex_;
  Tensors tensors_;
  std::map<std::string, std::vector<bool>> filled_;
};

}  // namespace omni::test
