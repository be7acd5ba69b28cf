// A few steps of a recipe on ranks of this process, and everything they leave: what any plan must
// have in common with one rank.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/support/equivalence.h"

namespace omni::test {

struct PlanRun {
  std::vector<double> losses, grad_norms;  // by step
  // Weights by path and optimizer state by "path#what", put together from all ranks' parts: after
  // the first step (whose first moments are the gradients, but for a factor) and after the last.
  Tensors first, last;
};

// `yaml`: a whole recipe; its parallel.workers ranks are threads over `comm` ("shm", "tcp").
// InvalidArgument where the recipe is refused; Internal if the ranks' parts overlap or leave holes,
// or if a rank did other actions than its verified program has.
absl::StatusOr<PlanRun> RunPlan(const std::string& yaml, const std::string& comm, int64_t steps);

// The worst of ||a - b|| / max(||b||, floor ||all b||) over weights and gradients of the runs, and
// of losses' and norms' relative differences; and where it is. A difference in names or sizes is
// infinite.
struct WorstError {
  double value = 0;
  std::string where;
};
WorstError Compare(const PlanRun& a, const PlanRun& one_rank, double floor);

}  // namespace omni::test
