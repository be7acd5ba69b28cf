// The ranks that share one kind of work, as ops see them: this rank's communicator with them.
//
// A group of one has no communicator: ops over it are the identity and cost nothing, so that a
// model reads the same on one device and on thousands.
#pragma once

#include <cstdint>

#include "runtime/comm/communicator.h"

namespace omni::parallel {

struct Group {
  Communicator* comm = nullptr;  // null: this rank alone. Its owner outlives every use

  int32_t rank() const { return comm == nullptr ? 0 : comm->rank(); }
  int32_t size() const { return comm == nullptr ? 1 : comm->size(); }
  bool is_alone() const { return size() == 1; }
};

}  // namespace omni::parallel
