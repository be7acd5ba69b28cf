// Runs cases of the equivalence sweep and says how far they are from one rank.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/sweep/plan_run.h"
#include "tests/sweep/sweep_case.h"

namespace omni::test {

// How a case is run.
struct SweepRun {
  std::string dtype = "fp64", device = "cpu", comm = "shm", gpu_comm = "auto";
  bool processes = false;
};
// The runs of case `index` of a sweep: on threads in fp64; every tenth also in fp32, another tenth
// also on cpu_async, and every fifth also as processes.
std::vector<SweepRun> RunsOf(int64_t index, const SweepPlan& plan);

// What a run may be off (ARCHITECTURE.md, "Contracts"): gradients of the first step and weights
// after the last. In fp64 also the optimizer's state then; in fp32 gradients of later steps, of
// weights that are off by then, are further off than those of one step.
struct Tolerance {
  double error;
  Measure measure;
};
Tolerance ToleranceOf(const std::string& dtype);

class Sweep {
 public:
  // `data_dir`: the quickstart's data; `work_dir`: for run directories of processes.
  Sweep(std::string data_dir, std::string work_dir)
      : data_dir_(std::move(data_dir)), work_dir_(std::move(work_dir)) {}

  // `parallel`: the inside of the section. An error is a miss too: plans that are refused must not
  // be made.
  absl::StatusOr<WorstError> Run(const Levels& job, const std::string& parallel,
                                 int32_t micro_batch_sequences, const SweepRun& how,
                                 const WrapCommunicator& wrap = {});

 private:
  absl::StatusOr<const PlanRun*> OneRank(const Levels& job, const std::string& dtype);

  const std::string data_dir_, work_dir_;
  std::map<std::string, PlanRun> one_rank_;  // by recipe
};

}  // namespace omni::test
