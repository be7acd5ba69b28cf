#include "tests/support/equivalence.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "runtime/base/status.h"
#include "runtime/checkpoint/checkpoint.h"
#include "tests/support/checkpoints.h"

namespace omni::test {
namespace {

double Norm(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return std::sqrt(sum);
}

// Series of one value a step.
void Compare(const char* what, const std::vector<double>& a, const std::vector<double>& b,
             double tolerance, std::vector<std::string>* differences) {
  if (a.size() != b.size()) {
    differences->push_back(absl::StrFormat("%s of %d steps, not %d", what, a.size(), b.size()));
    return;
  }
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::abs(a[i] - b[i]) <= tolerance * std::abs(b[i])) continue;  // NaN is a difference
    differences->push_back(
        absl::StrFormat("%s of step %d: %.17g, not %.17g", what, i + 1, a[i], b[i]));
  }
}

absl::StatusOr<double> Number(const std::map<std::string, std::string>& values,
                              const std::string& name) {
  const auto found = values.find(name);
  double value;
  if (found == values.end() || !absl::SimpleAtod(found->second, &value)) {
    return absl::DataLossError(absl::StrCat("no number \"", name, "\""));
  }
  return value;
}

}  // namespace

TinyRecipe EquivalenceRecipe() {
  return {.steps = 20,
          .lanes = 5,
          .phases =
              "[{until_step: 5, weights: {image: 1, audio: 1, video: 1, text: 1, mixed: 1}},"
              " {until_step: 9, weights: {audio: 1, text: 12}},"
              " {until_step: 13, weights: {image: 1, text: 8}},"
              " {until_step: 16, weights: {text: 1}}]"};
}

std::vector<std::string> Differences(const Outcome& a, const Outcome& b, double tolerance,
                                     double floor) {
  std::vector<std::string> differences;
  Compare("loss", a.losses, b.losses, tolerance, &differences);
  Compare("gradient norm", a.grad_norms, b.grad_norms, tolerance, &differences);
  double all = 0;
  for (const auto& [path, values] : b.parameters) all += std::pow(Norm(values), 2);
  all = std::sqrt(all);
  for (const auto& [path, values] : a.parameters) {
    if (b.parameters.count(path) == 0) differences.push_back(path + " is only in the first");
  }
  for (const auto& [path, values] : b.parameters) {
    const auto found = a.parameters.find(path);
    if (found == a.parameters.end() || found->second.size() != values.size()) {
      differences.push_back(path + " is missing, or of another size, in the first");
      continue;
    }
    std::vector<double> difference = found->second;
    for (size_t i = 0; i < difference.size(); ++i) difference[i] -= values[i];
    const double limit = tolerance * std::max(Norm(values), floor * all);
    if (Norm(difference) <= limit) continue;
    differences.push_back(
        absl::StrFormat("%s: off by %.3g, more than %.3g", path, Norm(difference), limit));
  }
  return differences;
}

absl::StatusOr<Tensors> ReadNewestCheckpoint(const std::string& run_dir) {
  const auto all = CheckpointsIn(run_dir + "/checkpoints");
  if (all.empty()) return absl::NotFoundError(run_dir + "/checkpoints: no checkpoint");
  OMNI_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(all.back().second));
  Tensors tensors;
  for (const std::string& name : checkpoint->names()) {
    OMNI_ASSIGN_OR_RETURN(const std::vector<int64_t> shape, checkpoint->Shape(name));
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    std::vector<double>& values = tensors[name];
    values.resize(count);
    const auto view = TensorView::Dense(values.data(), DType::kFloat64, DeviceKind::kCpu, {count});
    OMNI_RETURN_IF_ERROR(checkpoint->Read({name, shape, 0, view}));
  }
  return tensors;
}

absl::StatusOr<Outcome> ReadOutcome(const std::string& run_dir) {
  Outcome outcome;
  for (const auto& [step, values] : ReadMetrics(run_dir + "/metrics.jsonl")) {
    OMNI_ASSIGN_OR_RETURN(outcome.losses.emplace_back(), Number(values, "loss"));
    OMNI_ASSIGN_OR_RETURN(outcome.grad_norms.emplace_back(), Number(values, "grad_norm"));
  }
  OMNI_ASSIGN_OR_RETURN(outcome.parameters, ReadNewestCheckpoint(run_dir));
  std::erase_if(outcome.parameters,
                [](const auto& tensor) { return tensor.first.find('#') != std::string::npos; });
  return outcome;
}

}  // namespace omni::test
