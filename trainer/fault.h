// Faults made on purpose, so that tests can see what the other ranks make of them. In a recipe, for
// tests alone:
//
//   runtime:
//     fault: {rank: 1, step: 2, at: forward, kind: stop}
//
// The rank strikes when, in that step (from 1), it begins the first activity whose name begins with
// `at`: a phase ("agreeing") or an action ("encoder backward", "send rows", "update").
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "runtime/base/config.h"
#include "runtime/base/log.h"
#include "runtime/comm/communicator.h"

namespace omni::trainer {

enum class FaultKind : uint8_t {
  kNone,
  kCrash,  // SIGKILL
  kStop,   // SIGSTOP: the process stays, and does nothing any more
  kHang,   // the training thread sleeps, all others go on
};

struct FaultConfig {
  FaultKind kind = FaultKind::kNone;
  int32_t rank = 0;
  int64_t step = 1;
  std::string at;

  // `step` counts from 1.
  bool Strikes(int32_t of_rank, int64_t in_step, absl::string_view activity) const;
};
absl::Status Read(const ConfigNode& node, FaultConfig* out);

// Does not return, or (after SIGCONT) late. Before, it logs what and when, and has told the other
// ranks what this one is doing. `comm` and `log` may be null.
void Strike(FaultKind kind, absl::string_view activity, Communicator* comm, Logger* log);

}  // namespace omni::trainer
