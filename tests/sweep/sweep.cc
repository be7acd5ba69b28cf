#include "tests/sweep/sweep.h"

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "tests/support/test_device.h"

namespace omni::test {

std::vector<SweepRun> RunsOf(int64_t index, const SweepPlan& plan) {
  std::vector<SweepRun> runs = {{.comm = plan.comm}};
  if (index % 10 == 3) runs.push_back({.dtype = "fp32", .comm = plan.comm});
  if (index % 10 == 7) runs.push_back({.device = "cpu_async", .comm = plan.comm});
  if (index % 10 == 1 && testing::HasEmulatedGpu()) {
    runs.push_back({.device = "cuda_emulated",
                    .comm = plan.comm,
                    .gpu_comm = index % 20 == 1 ? "host" : "nccl"});
  }
  if (index % 5 == 0) runs.push_back({.comm = plan.comm, .processes = true});
  return runs;
}

Tolerance ToleranceOf(const std::string& dtype) {
  if (dtype == "fp64") return {.error = 1e-9, .measure = {.floor = 1e-6, .last_state = true}};
  return {.error = 2e-5, .measure = {.floor = 1e-3, .last_state = false}};
}

absl::StatusOr<const PlanRun*> Sweep::OneRank(const Levels& job, const std::string& dtype) {
  const std::string recipe = SweepRecipe(job, {.data_dir = data_dir_, .dtype = dtype});
  const auto found = one_rank_.find(recipe);
  if (found != one_rank_.end()) return &found->second;
  auto run = RunPlan(recipe);
  if (!run.ok()) return Annotate(run.status(), "one rank");
  return &one_rank_.emplace(recipe, *std::move(run)).first->second;
}

absl::StatusOr<WorstError> Sweep::Run(const Levels& job, const std::string& parallel,
                                      int32_t micro_batch_sequences, const SweepRun& how,
                                      const WrapCommunicator& wrap) {
  OMNI_ASSIGN_OR_RETURN(const PlanRun* one_rank, OneRank(job, how.dtype));
  const std::string recipe = SweepRecipe(job, {.data_dir = data_dir_,
                                               .parallel = parallel,
                                               .micro_batch_sequences = micro_batch_sequences,
                                               .dtype = how.dtype,
                                               .device = how.device,
                                               .comm = how.comm,
                                               .gpu_comm = how.gpu_comm});
  OMNI_ASSIGN_OR_RETURN(const PlanRun run,
                        how.processes ? RunProcesses(recipe, absl::StrCat(work_dir_, "/sweep-run"))
                                      : RunPlan(recipe, wrap));
  return Compare(run, *one_rank, ToleranceOf(how.dtype).measure);
}

}  // namespace omni::test
