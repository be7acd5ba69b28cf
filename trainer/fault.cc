#include "trainer/fault.h"

#include <csignal>

#include "absl/strings/match.h"
#include "absl/time/clock.h"

namespace omni::trainer {

bool FaultConfig::Strikes(int32_t of_rank, int64_t in_step, absl::string_view activity) const {
  return kind != FaultKind::kNone && of_rank == rank && in_step == step &&
         absl::StartsWith(activity, at);
}

absl::Status Read(const ConfigNode& node, FaultConfig* out) {
  ConfigReader reader(node);
  reader.ReadEnum("kind", &out->kind,
                  {{"none", FaultKind::kNone},
                   {"crash", FaultKind::kCrash},
                   {"stop", FaultKind::kStop},
                   {"hang", FaultKind::kHang}});
  reader.Read("rank", &out->rank, NonNegative());
  reader.Read("step", &out->step, Positive());
  reader.Read("at", &out->at);
  return reader.Finish();
}

void Strike(FaultKind kind, absl::string_view activity, Communicator* comm, Logger* log) {
  if (comm != nullptr) comm->FlushActivity();
  absl::SleepFor(absl::Milliseconds(300));  // the others get to where they wait for this rank
  const char* what = kind == FaultKind::kCrash  ? "crashes"
                     : kind == FaultKind::kStop ? "stops"
                                                : "hangs";
  if (log != nullptr) log->Info("a fault made on purpose: ", what, " at ", activity);
  if (kind == FaultKind::kCrash) raise(SIGKILL);
  if (kind == FaultKind::kStop) raise(SIGSTOP);
  while (kind == FaultKind::kHang) absl::SleepFor(absl::Hours(1));
}

}  // namespace omni::trainer
