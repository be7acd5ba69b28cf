// A few steps of a recipe on ranks of this process, and everything they leave: what any plan must
// have in common with one rank.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/comm/communicator.h"
#include "tests/support/equivalence.h"

namespace omni::test {

struct PlanRun {
  std::vector<double> losses, grad_norms;  // by step
  // Weights by path and optimizer state by "path#what", put together from all ranks' parts: after
  // the first step (whose first moments are the gradients, but for a factor) and after the last.
  Tensors first, last;
};

// Stands between a rank and its communicator; for mutations (mutations.h).
using WrapCommunicator = std::function<std::unique_ptr<Communicator>(Communicator& comm)>;

// `yaml`: a whole recipe; its parallel.workers ranks are threads over runtime.comm. InvalidArgument
// where the recipe is refused; Internal if the ranks' parts overlap or leave holes, or if a rank's
// actions are not those of its program, one by one.
absl::StatusOr<PlanRun> RunPlan(const std::string& yaml, const WrapCommunicator& wrap = {});

// The same as a job of processes, `omnitrain train` in `run_dir` (made anew). What is left of it:
// losses, norms and the checkpoint, which is `last`; `first` is empty.
absl::StatusOr<PlanRun> RunProcesses(const std::string& yaml, const std::string& run_dir);

struct Measure {
  double floor = 1e-6;
  // Whether after the last step the optimizer's state counts too, not only the weights.
  bool last_state = true;
};

// The worst of ||a - b|| / max(||b||, floor ||all b||) over weights and gradients of the runs, and
// of losses' and norms' relative differences; and where it is. A difference in names or sizes is
// infinite. Of the first step nothing is compared if `a` has nothing.
struct WorstError {
  double value = 0;
  std::string where;
};
WorstError Compare(const PlanRun& a, const PlanRun& one_rank, const Measure& measure);

}  // namespace omni::test
