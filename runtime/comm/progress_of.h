// Where a rank counts the pieces of work it has done; the others look at it while they wait for the
// rank. One for all communicators split from one world.
#pragma once

#include <memory>

#include "runtime/base/progress.h"
#include "runtime/comm/communicator.h"

namespace omni {

// Shared with the links, which may end before the work. Of a communicator of another kind than the
// engines': one that nobody looks at.
std::shared_ptr<Progress> ProgressOf(Communicator& comm);

}  // namespace omni
