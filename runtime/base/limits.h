// The one place where limits of waits come from: `runtime.deadline_s` of the recipe.
//
// A limit says dead, never slow: it is how long what is waited for may show no progress
// (progress.h), in time in which this process ran (working_clock.h), not how long a wait may last.
// The inner of two waits ends first, so that who knows most of what is missing speaks: the loader,
// which knows the sample, before a collective, which knows the rank, before the step that waits
// for it, before the coordinator, which only knows that a process is silent.
#pragma once

#include "absl/time/time.h"

namespace omni {

struct Limits {
  absl::Duration data;        // no sample got ready, of those a step or an evaluation waits for
  absl::Duration collective;  // no byte of a call moved, and who lacks it shows no progress
  absl::Duration step;        // likewise, for the host that waits for the call
  absl::Duration heartbeat;   // a worker is silent towards the coordinator
  absl::Duration connect;     // for ranks to find each other, from the first to the last
  // No block of a file was written, read or removed by a keeper. Longest of all: an fsync shows
  // nothing until it is over, and what a save would lose is dear.
  absl::Duration storage;

  static Limits From(double deadline_s) {
    const absl::Duration deadline = absl::Seconds(deadline_s);
    return {.data = 0.75 * deadline,
            .collective = deadline,
            .step = 1.25 * deadline,
            .heartbeat = 1.5 * deadline,
            .connect = 2 * deadline,
            .storage = 4 * deadline};
  }
};

}  // namespace omni
