#include "tests/support/gradient_check.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "runtime/base/rng.h"

namespace omni::testing::internal {
namespace {

using Values = std::vector<double>;

// Everything the op reads, on the host, in fp64.
struct Problem {
  std::vector<CheckedTensor> inputs, weights;  // with values
  CheckedOp op;
  uint64_t seed;
};

enum class Pass : uint8_t { kForwardOnly, kTogether, kSplit };

struct Outcome {
  std::vector<Values> outputs, input_grads, weight_grads;  // grads empty where not wanted
};

// What weight gradients start from: adding must keep it.
constexpr double kGradStart = 0.5;

Values Draw(const CheckedTensor& tensor, uint64_t seed, uint64_t stream) {
  int64_t count = 1;
  for (const int64_t size : tensor.sizes) count *= size;
  if (!tensor.values.empty()) {
    OMNI_CHECK_EQ(static_cast<int64_t>(tensor.values.size()), count);
    return tensor.values;
  }
  CounterRng rng(seed, stream);
  Values values(count);
  for (double& value : values) value = tensor.offset + tensor.scale * rng.NextNormal();
  return values;
}

Problem Fill(const std::vector<CheckedTensor>& inputs, const std::vector<CheckedTensor>& weights,
             const CheckedOp& op, uint64_t seed) {
  Problem problem{inputs, weights, op, seed};
  uint64_t stream = 0;
  for (CheckedTensor& tensor : problem.inputs) tensor.values = Draw(tensor, seed, stream++);
  for (CheckedTensor& tensor : problem.weights) tensor.values = Draw(tensor, seed, stream++);
  return problem;
}

// The coefficients of output `index` in the scalar: the same at every run.
Values Coefficients(const Problem& problem, size_t index, int64_t count) {
  CounterRng rng(problem.seed, StreamOf("coefficients") + index);
  Values coefficients(count);
  // Eighths up to 2: exact in every float type.
  for (double& c : coefficients) c = (static_cast<double>(rng.NextBelow(33)) - 16.0) / 8.0;
  return coefficients;
}

Outcome Run(TestDevice& device, const Problem& problem, DType dtype, Pass pass) {
  TensorArena arena(device.device());
  std::optional<Tape> tape;
  if (pass != Pass::kForwardOnly) tape.emplace(device.device());
  ExecContext ctx = device.ctx(arena);
  if (tape) ctx.tape = &*tape;

  std::vector<Var> inputs;
  for (const CheckedTensor& tensor : problem.inputs) {
    const TensorView value = device.UploadAs(dtype, tensor.values, tensor.sizes, arena);
    inputs.push_back(tape ? tape->Input(value, tensor.wants_grad) : Var{value});
  }
  const DType grad_dtype = dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  std::vector<Weight> weights;
  for (const CheckedTensor& tensor : problem.weights) {
    Weight weight{device.UploadAs(dtype, tensor.values, tensor.sizes, arena), {}};
    if (tape && tensor.wants_grad) {
      const Values start(tensor.values.size(), kGradStart);
      weight.grad = device.UploadAs(grad_dtype, start, tensor.sizes, arena);
    }
    weights.push_back(weight);
  }

  const std::vector<Var> outputs = problem.op(ctx, inputs, weights);
  if (tape) tape->EndForward(outputs);
  Outcome outcome;
  std::vector<Tape::RootGrad> roots;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const TensorView& value = outputs[i].value;
    outcome.outputs.push_back(device.ReadDoubles(value));
    if (!tape || !outputs[i].needs_grad()) continue;
    const Values coefficients = Coefficients(problem, i, value.num_elements());
    roots.push_back({outputs[i], device.UploadAs(value.dtype, coefficients, value.shape(), arena)});
  }
  if (!tape) return outcome;

  ExecContext back = device.ctx(arena);
  if (pass == Pass::kTogether) {
    tape->Backward(back, roots);
  } else {
    tape->BackwardInput(back, roots);
    tape->WeightGrad(back);
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    const TensorView grad = tape->GradOf(inputs[i]);
    const bool wanted = problem.inputs[i].wants_grad;
    outcome.input_grads.push_back(!wanted        ? Values{}
                                  : grad.empty() ? Values(problem.inputs[i].values.size(), 0.0)
                                                 : device.ReadDoubles(grad));
  }
  for (const Weight& weight : weights) {
    Values grad;
    if (weight.trainable()) grad = device.ReadDoubles(weight.grad);
    for (double& g : grad) g -= kGradStart;
    outcome.weight_grads.push_back(std::move(grad));
  }
  return outcome;
}

double Scalar(TestDevice& device, const Problem& problem) {
  const Outcome outcome = Run(device, problem, DType::kFloat64, Pass::kForwardOnly);
  double sum = 0.0;
  for (size_t i = 0; i < outcome.outputs.size(); ++i) {
    const Values& output = outcome.outputs[i];
    const Values coefficients = Coefficients(problem, i, static_cast<int64_t>(output.size()));
    for (size_t e = 0; e < output.size(); ++e) sum += coefficients[e] * output[e];
  }
  return sum;
}

// Fourth order: (8 (f(x+h) - f(x-h)) - (f(x+2h) - f(x-2h))) / 12h.
double Difference(TestDevice& device, Problem& problem, double& element, double step) {
  const double kept = element;
  const auto at = [&](double offset) {
    element = kept + offset;
    return Scalar(device, problem);
  };
  const double near = at(step) - at(-step), far = at(2 * step) - at(-2 * step);
  element = kept;
  return (8 * near - far) / (12 * step);
}

double Largest(const Values& values) {
  double largest = 0.0;
  for (const double v : values) largest = std::max(largest, std::abs(v));
  return largest;
}

void CheckTensor(TestDevice& device, Problem& problem, Values& values, const Values& grad,
                 const GradientCheckOptions& options, const std::string& what) {
  ASSERT_EQ(grad.size(), values.size()) << what;
  const auto count = static_cast<int64_t>(values.size());
  const int64_t num_checked = std::min(count, options.max_elements);
  if (count == 0) return;
  const Permutation order(count, options.seed, StreamOf(what));
  const double allowed = options.tolerance * std::max(1.0, Largest(grad));
  for (int64_t i = 0; i < num_checked; ++i) {
    const auto element = num_checked == count ? i : static_cast<int64_t>(order(i));
    const double expected = Difference(device, problem, values[element], options.step);
    // Written so that NaN fails.
    EXPECT_TRUE(std::abs(grad[element] - expected) <= allowed)
        << what << " element " << element << ": backward gives " << grad[element]
        << ", central difference " << expected << ", allowed " << allowed << " (seed "
        << options.seed << ")";
  }
}

void ExpectSameBits(const std::vector<Values>& a, const std::vector<Values>& b,
                    const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  for (size_t i = 0; i < a.size(); ++i) EXPECT_EQ(a[i], b[i]) << what << " " << i;
}

void ExpectClose(const Values& a, const Values& b, double tolerance, const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  EXPECT_TRUE(std::sqrt(difference) <= tolerance * std::sqrt(norm))
      << what << ": differs by " << std::sqrt(difference) << ", norm " << std::sqrt(norm);
}

// Each gradient with all others unwanted: a frozen neighbour must change nothing.
void CheckAlone(TestDevice& device, const Problem& problem, const Outcome& all) {
  const auto only = [&](bool is_input, size_t wanted) {
    Problem alone = problem;
    for (size_t i = 0; i < alone.inputs.size(); ++i)
      alone.inputs[i].wants_grad = is_input && i == wanted;
    for (size_t i = 0; i < alone.weights.size(); ++i)
      alone.weights[i].wants_grad = !is_input && i == wanted;
    return Run(device, alone, DType::kFloat64, Pass::kTogether);
  };
  for (size_t i = 0; i < problem.inputs.size(); ++i) {
    if (!problem.inputs[i].wants_grad) continue;
    ExpectClose(only(true, i).input_grads[i], all.input_grads[i], 1e-12,
                absl::StrCat("input ", i, " alone"));
  }
  for (size_t i = 0; i < problem.weights.size(); ++i) {
    if (!problem.weights[i].wants_grad) continue;
    ExpectClose(only(false, i).weight_grads[i], all.weight_grads[i], 1e-12,
                absl::StrCat("weight ", i, " alone"));
  }
}

}  // namespace

void CheckGradients(TestDevice& device, const std::vector<CheckedTensor>& inputs,
                    const std::vector<CheckedTensor>& weights, const CheckedOp& op,
                    const GradientCheckOptions& options) {
  Problem problem = Fill(inputs, weights, op, options.seed);
  const int64_t used_before = device.used_bytes();
  const Outcome together = Run(device, problem, DType::kFloat64, Pass::kTogether);
  const Outcome split = Run(device, problem, DType::kFloat64, Pass::kSplit);
  EXPECT_EQ(device.used_bytes(), used_before) << "memory is kept after the tape is gone";
  ExpectSameBits(split.outputs, together.outputs, "forward twice: output");
  ExpectSameBits(split.input_grads, together.input_grads, "split backward: input");
  ExpectSameBits(split.weight_grads, together.weight_grads, "split backward: weight");
  const Outcome forward = Run(device, problem, DType::kFloat64, Pass::kForwardOnly);
  ExpectSameBits(forward.outputs, together.outputs, "without a tape: output");
  CheckAlone(device, problem, together);

  for (size_t i = 0; i < problem.inputs.size(); ++i) {
    if (!problem.inputs[i].wants_grad) continue;
    CheckTensor(device, problem, problem.inputs[i].values, together.input_grads[i], options,
                absl::StrCat("input ", i));
  }
  for (size_t i = 0; i < problem.weights.size(); ++i) {
    if (!problem.weights[i].wants_grad) continue;
    CheckTensor(device, problem, problem.weights[i].values, together.weight_grads[i], options,
                absl::StrCat("weight ", i));
  }
}

void CheckPrecision(TestDevice& device, const std::vector<CheckedTensor>& inputs,
                    const std::vector<CheckedTensor>& weights, const CheckedOp& op, DType dtype,
                    double tolerance, uint64_t seed) {
  Problem problem = Fill(inputs, weights, op, seed);
  const auto round = [&](std::vector<CheckedTensor>& tensors) {
    for (CheckedTensor& tensor : tensors) {
      for (double& v : tensor.values) {
        const auto narrow = static_cast<float>(v);
        v = dtype == DType::kBFloat16 ? static_cast<float>(BFloat16(narrow)) : narrow;
      }
    }
  };
  round(problem.inputs);
  round(problem.weights);
  const Outcome exact = Run(device, problem, DType::kFloat64, Pass::kTogether);
  const Outcome rounded = Run(device, problem, dtype, Pass::kTogether);
  const auto compare = [&](const std::vector<Values>& a, const std::vector<Values>& b,
                           const char* what) {
    ASSERT_EQ(a.size(), b.size()) << what;
    for (size_t i = 0; i < a.size(); ++i) {
      const absl::string_view name = Name(dtype);
      ExpectClose(a[i], b[i], tolerance, absl::StrCat(name, " ", what, " ", i));
    }
  };
  compare(rounded.outputs, exact.outputs, "output");
  compare(rounded.input_grads, exact.input_grads, "gradient of input");
  compare(rounded.weight_grads, exact.weight_grads, "gradient of weight");
}

}  // namespace omni::testing::internal
