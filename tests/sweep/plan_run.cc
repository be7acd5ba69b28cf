#include "tests/sweep/plan_run.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "parallel/schedule/build.h"
#include "parallel/schedule/verify.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "tests/e2e/process.h"
#include "tests/support/run_ranks.h"
#include "tests/sweep/assembly.h"
#include "trainer/trainer.h"

namespace omni::test {
namespace {

const KernelRegistry& Kernels() {
  static const KernelRegistry registry = [] {
    KernelRegistry r;
    RegisterCpuKernels(r);
    return r;
  }();
  return registry;
}

double Norm(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return std::sqrt(sum);
}

// The wider of a value and NaN is NaN: it must not pass as small.
void Widen(double value, const std::string& where, WorstError* worst) {
  if (value <= worst->value) return;
  *worst = {std::isnan(value) ? std::numeric_limits<double>::infinity() : value, where};
}

void CompareTensors(const Tensors& a, const Tensors& b, double floor, bool with_state,
                    const std::string& when, WorstError* worst) {
  // Of one kind each: weights, first moments, ...
  std::map<std::string, double> all;
  const auto kind = [](const std::string& name) {
    return name.find('#') == std::string::npos ? "" : name.substr(name.find('#'));
  };
  for (const auto& [name, values] : b) all[kind(name)] += std::pow(Norm(values), 2);
  if (a.size() != b.size()) {
    Widen(std::numeric_limits<double>::infinity(), when + ": other tensors", worst);
  }
  for (const auto& [name, values] : b) {
    const auto found = a.find(name);
    if (found == a.end() || found->second.size() != values.size()) {
      Widen(std::numeric_limits<double>::infinity(), absl::StrCat(when, ": no ", name), worst);
      continue;
    }
    if (!with_state && !kind(name).empty()) continue;
    std::vector<double> difference = found->second;
    for (size_t i = 0; i < difference.size(); ++i) difference[i] -= values[i];
    const double scale = std::max(Norm(values), floor * std::sqrt(all[kind(name)]));
    const double off = Norm(difference);
    Widen(off == 0 ? 0 : off / scale, absl::StrCat(when, ": ", name), worst);
  }
}

// Programs as the recipe's layout has them, verified: what every rank must do in a step.
class ExpectedActions {
 public:
  ExpectedActions(const trainer::Recipe& recipe, const trainer::MultimodalModel& model)
      : recipe_(recipe), layout_(recipe.layout(model)), modules_(model.Modules()) {}

  absl::StatusOr<parallel::Program> Of(int32_t rank, int64_t step) const {
    // Lanes that wait in a step leave microbatches empty, not out.
    const int32_t replicas = recipe_.parallel.data();
    const int32_t sequences = (recipe_.data.lanes + replicas - 1) / replicas;
    const int32_t size = recipe_.data.micro_batch_sequences;
    std::vector<bool> trains;
    for (const std::string& name : layout_.encoder_names()) trains.push_back(Trains(name, step));
    const parallel::ScheduleOptions options =
        layout_.Schedule((sequences + size - 1) / size, trains);
    const std::vector<parallel::Program> programs = BuildPrograms(options);
    OMNI_RETURN_IF_ERROR(Verify(options, programs));
    return programs[layout_.PipelineRank(rank)];
  }

 private:
  // Any module of it, or its adapters.
  bool Trains(const std::string& encoder, int64_t step) const {
    const trainer::ModuleSchedule schedule = recipe_.modules();
    for (const std::string& module : modules_) {
      const bool is_its = module == encoder || module == "lora." + encoder ||
                          absl::StartsWith(module, encoder + ".");
      if (is_its && !schedule.At(module, step).frozen) return true;
    }
    return false;
  }

  const trainer::Recipe& recipe_;
  const parallel::Layout layout_;
  const std::vector<std::string> modules_;
};

absl::Status CheckActions(const parallel::Program& done, const parallel::Program& expected,
                          int64_t step) {
  const auto [at, other] =
      std::mismatch(done.begin(), done.end(), expected.begin(), expected.end());
  if (at == done.end() && other == expected.end()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("step ", step + 1, ", action ", at - done.begin(),
                                          ": done ", at == done.end() ? "nothing" : ToString(*at),
                                          ", the verified program has ",
                                          other == expected.end() ? "nothing" : ToString(*other)));
}

}  // namespace

absl::StatusOr<PlanRun> RunPlan(const std::string& yaml, const WrapCommunicator& wrap) {
  OMNI_ASSIGN_OR_RETURN(const trainer::Recipe recipe, trainer::ParseRecipe(yaml, "plan.yaml"));
  const int64_t steps = recipe.training.steps;
  PlanRun run;
  Assembly first, last;
  const auto one_rank = [&](Communicator* communicator, int32_t rank) -> absl::Status {
    std::unique_ptr<Communicator> wrapped;
    if (wrap && communicator != nullptr) {
      wrapped = wrap(*communicator);
      communicator = wrapped.get();
    }
    parallel::Program done;
    OMNI_ASSIGN_OR_RETURN(
        const auto trainer,
        trainer::Trainer::Create(
            {.recipe = recipe,
             .comm = communicator,
             .kernels = &Kernels(),
             .on_action = [&](const parallel::Action& action) { done.push_back(action); }}));
    const ExpectedActions expected(recipe, trainer->model());
    for (int64_t step = 0; step < steps; ++step) {
      done.clear();
      OMNI_ASSIGN_OR_RETURN(const auto values, trainer->RunStep());
      OMNI_ASSIGN_OR_RETURN(const parallel::Program program, expected.Of(rank, step));
      OMNI_RETURN_IF_ERROR(CheckActions(done, program, step));
      if (rank == 0) {
        run.losses.push_back(values.at("loss"));
        run.grad_norms.push_back(values.at("grad_norm"));
      }
      if (step == 0) OMNI_RETURN_IF_ERROR(first.Add(trainer->StateRanges()));
    }
    return last.Add(trainer->StateRanges());
  };
  if (recipe.parallel.workers == 1) {
    OMNI_RETURN_IF_ERROR(one_rank(nullptr, 0));
  } else {
    OMNI_RETURN_IF_ERROR(RunRanks(
        recipe.parallel.workers, recipe.runtime.comm,
        [&](Communicator& communicator, int32_t rank) { return one_rank(&communicator, rank); },
        {.deadline = absl::Seconds(recipe.runtime.deadline_s)}, absl::Minutes(5)));
  }
  OMNI_ASSIGN_OR_RETURN(run.first, first.Take());
  OMNI_ASSIGN_OR_RETURN(run.last, last.Take());
  return run;
}

absl::StatusOr<PlanRun> RunProcesses(const std::string& yaml, const std::string& run_dir) {
  std::filesystem::remove_all(run_dir);
  const std::string recipe = run_dir + ".yaml";
  OMNI_RETURN_IF_ERROR(WriteFileAtomically(recipe, yaml));
  OmnitrainProcess job({"train", recipe, "--run-dir", run_dir});
  if (const int code = job.Wait(absl::Minutes(5)); code != 0) {
    return absl::InternalError(
        absl::StrCat("omnitrain train ends with ", code, ": ", job.output()));
  }
  OMNI_ASSIGN_OR_RETURN(const Outcome outcome, ReadOutcome(run_dir));
  PlanRun run{.losses = outcome.losses, .grad_norms = outcome.grad_norms};
  OMNI_ASSIGN_OR_RETURN(run.last, ReadNewestCheckpoint(run_dir));
  std::filesystem::remove_all(run_dir);
  std::filesystem::remove(recipe);
  return run;
}

WorstError Compare(const PlanRun& a, const PlanRun& one_rank, const Measure& measure) {
  WorstError worst;
  const auto series = [&](const char* what, const std::vector<double>& x,
                          const std::vector<double>& y) {
    if (x.size() != y.size()) {
      return Widen(std::numeric_limits<double>::infinity(), absl::StrCat("steps of ", what),
                   &worst);
    }
    for (size_t i = 0; i < x.size(); ++i) {
      Widen(x[i] == y[i] ? 0 : std::abs(x[i] - y[i]) / std::abs(y[i]),
            absl::StrCat(what, " of step ", i + 1), &worst);
    }
  };
  series("loss", a.losses, one_rank.losses);
  series("gradient norm", a.grad_norms, one_rank.grad_norms);
  if (!a.first.empty())
    CompareTensors(a.first, one_rank.first, measure.floor, true, "step 1", &worst);
  CompareTensors(a.last, one_rank.last, measure.floor, measure.last_state, "last step", &worst);
  return worst;
}

}  // namespace omni::test
