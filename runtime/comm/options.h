// What every engine can be told.
#pragma once

#include <cstdint>
#include <string>

#include "absl/time/time.h"

namespace omni {

struct CommOptions {
  // A call that somebody waits for (Wait, WaitHost) ends with DeadlineExceeded when no byte of it
  // has moved for this long and the rank that all wait for in the end has shown no progress for as
  // long (runtime/base/progress.h): a rank that computes, reads or writes is waited for. One posted
  // early and not yet waited for may take any time. Time in which this process did not run does not
  // count.
  absl::Duration deadline = absl::Seconds(30);
  // How long forming a communicator may take, from the first rank to the last.
  absl::Duration connect_deadline = absl::Seconds(60);
  // How long the others may take to say how far they are once a call has expired; who has not
  // answered by then is taken for stalled. Three times that where it could be one or another.
  absl::Duration query_deadline = absl::Milliseconds(300);

  // Counts the communicators a job has made one after another; ranks of different generations
  // refuse each other with FailedPrecondition.
  int64_t generation = 0;
  // Ranks with different tokens (jobs) refuse each other with PermissionDenied.
  uint64_t token = 0;

  // shm: bytes in flight from one rank to another; a power of two of at least 4096. 0: chosen by
  // the size of the group.
  int64_t ring_bytes = 0;
  // How long to look for progress before sleeping. Negative: chosen by ranks and cores.
  absl::Duration spin = absl::Microseconds(-1);

  // What the group of all ranks is called in messages.
  std::string name = "world";
};

}  // namespace omni
