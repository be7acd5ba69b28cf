// The checkpoints of a run, as tests ask for them.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "runtime/checkpoint/checkpoint.h"

namespace omni {

// ListCheckpoints of a folder that can be read.
inline std::vector<std::pair<int64_t, std::string>> CheckpointsIn(const std::string& folder) {
  return ListCheckpoints(folder).value();
}

}  // namespace omni
