// What "any plan gives the result of one rank" (ARCHITECTURE.md, "Contracts") is tested with: one
// recipe, what a run leaves, and when two runs left the same. Used with ranks as threads
// (tests/trainer/equivalence_test.cc) and as processes (tests/e2e/equivalence_test.cc).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/support/tiny_job.h"

namespace omni::test {

// Tensors by name, flattened, widened to fp64.
using Tensors = std::map<std::string, std::vector<double>>;

struct Outcome {
  std::vector<double> losses, grad_norms;  // by step
  Tensors parameters;                      // after the last one
};

// 20 steps in fp64 with Muon: of everything, then without pictures, without sound, and of text
// alone; so in some steps some ranks, or all, have nothing for an encoder. Five lanes divide by
// no number of ranks from two to four.
TinyRecipe EquivalenceRecipe();

// Where `a` isn't `b`, one line each, naming step or parameter; none if
//
//   |x - y| <= tolerance |y|                                for every loss and gradient norm
//   ||p - q|| <= tolerance max(||q||, floor ||all q||)      for every parameter
std::vector<std::string> Differences(const Outcome& a, const Outcome& b, double tolerance,
                                     double floor);

// Every tensor of a run's newest checkpoint: parameters by path, and the optimizer's state as
// "path#momentum", "path#first_moment", "path#second_moment".
absl::StatusOr<Tensors> ReadNewestCheckpoint(const std::string& run_dir);

// Of a run directory: metrics.jsonl, and the parameters in the newest checkpoint.
absl::StatusOr<Outcome> ReadOutcome(const std::string& run_dir);

}  // namespace omni::test
