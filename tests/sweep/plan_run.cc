#include "tests/sweep/plan_run.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
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

void CompareTensors(const Tensors& a, const Tensors& b, double floor, const std::string& when,
                    WorstError* worst) {
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
    std::vector<double> difference = found->second;
    for (size_t i = 0; i < difference.size(); ++i) difference[i] -= values[i];
    const double scale = std::max(Norm(values), floor * std::sqrt(all[kind(name)]));
    const double off = Norm(difference);
    Widen(off == 0 ? 0 : off / scale, absl::StrCat(when, ": ", name), worst);
  }
}

}  // namespace

absl::StatusOr<PlanRun> RunPlan(const std::string& yaml, const std::string& comm, int64_t steps) {
  OMNI_ASSIGN_OR_RETURN(const trainer::Recipe recipe, trainer::ParseRecipe(yaml, "plan.yaml"));
  PlanRun run;
  Assembly first, last;
  const auto one_rank = [&](Communicator* communicator, int32_t rank) -> absl::Status {
    OMNI_ASSIGN_OR_RETURN(
        const auto trainer,
        trainer::Trainer::Create({.recipe = recipe, .comm = communicator, .kernels = &Kernels()}));
    for (int64_t step = 0; step < steps; ++step) {
      OMNI_ASSIGN_OR_RETURN(const auto values, trainer->RunStep());
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
        recipe.parallel.workers, comm,
        [&](Communicator& communicator, int32_t rank) { return one_rank(&communicator, rank); }));
  }
  OMNI_ASSIGN_OR_RETURN(run.first, first.Take());
  OMNI_ASSIGN_OR_RETURN(run.last, last.Take());
  return run;
}

WorstError Compare(const PlanRun& a, const PlanRun& one_rank, double floor) {
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
  CompareTensors(a.first, one_rank.first, floor, "step 1", &worst);
  CompareTensors(a.last, one_rank.last, floor, "last step", &worst);
  return worst;
}

}  // namespace omni::test
