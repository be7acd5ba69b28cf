// Holds an op's backward pass against central differences in fp64, and its fp32 and bf16 kernels
// against its fp64 ones.
//
//   ExpectGradientsMatch(
//       device, {{.sizes = {5, 4}}},                     // inputs: random unless values are given
//       {{.sizes = {3, 4}}, {.sizes = {3}}},             // weights
//       [](ExecContext& ctx, absl::Span<const Var> x, absl::Span<const Weight> w) {
//         return Linear(ctx, x[0], w[0], &w[1]);         // a Var, or a std::vector<Var>
//       });
//
// The scalar whose gradient is taken is the sum of all outputs, each element times a random
// coefficient, so an output of any shape will do. The op is run again for every perturbed
// element: keep shapes small, and odd.
#pragma once

#include <functional>
#include <type_traits>
#include <vector>

#include "absl/types/span.h"
#include "runtime/ops/tape.h"
#include "tests/support/test_device.h"

namespace omni::testing {

// One tensor the op reads.
struct CheckedTensor {
  std::vector<int64_t> sizes;
  std::vector<double> values = {};  // empty: normal draws, times `scale`, plus `offset`
  double scale = 1.0;
  double offset = 0.0;
  bool wants_grad = true;  // false: an input without gradient, a frozen weight
};

struct GradientCheckOptions {
  double step = 1e-3;         // of a fourth-order difference: its error is about step^4
  double tolerance = 1e-8;    // of the largest gradient element of the tensor (at least 1)
  int64_t max_elements = 64;  // perturbed per tensor; larger ones are sampled
  uint64_t seed = 1;
};

using CheckedOp = std::function<std::vector<Var>(ExecContext&, absl::Span<const Var> inputs,
                                                 absl::Span<const Weight> weights)>;

namespace internal {
template <typename Fn>
CheckedOp AsCheckedOp(Fn fn) {
  if constexpr (std::is_same_v<Var, std::invoke_result_t<Fn, ExecContext&, absl::Span<const Var>,
                                                         absl::Span<const Weight>>>) {
    return [fn](ExecContext& ctx, absl::Span<const Var> inputs, absl::Span<const Weight> weights) {
      return std::vector<Var>{fn(ctx, inputs, weights)};
    };
  } else {
    return fn;
  }
}

void CheckGradients(TestDevice& device, const std::vector<CheckedTensor>& inputs,
                    const std::vector<CheckedTensor>& weights, const CheckedOp& op,
                    const GradientCheckOptions& options);
void CheckPrecision(TestDevice& device, const std::vector<CheckedTensor>& inputs,
                    const std::vector<CheckedTensor>& weights, const CheckedOp& op, DType dtype,
                    double tolerance, uint64_t seed);
}  // namespace internal

// Reports a failure for each gradient that differs. Also checks that
//  - weight gradients are added to what was there,
//  - BackwardInput then WeightGrad gives the bits of Backward,
//  - the op without a tape gives the bits of the op with one,
//  - each gradient is the same when no other is wanted,
//  - all memory is returned when the tape is reset.
template <typename Fn>
void ExpectGradientsMatch(TestDevice& device, const std::vector<CheckedTensor>& inputs,
                          const std::vector<CheckedTensor>& weights, Fn op,
                          const GradientCheckOptions& options = {}) {
  internal::CheckGradients(device, inputs, weights, internal::AsCheckedOp(std::move(op)), options);
}

// Runs the op forward and backward in fp64 and in `dtype`, from values `dtype` holds exactly, and
// expects ||a - b|| <= tolerance * ||b|| for each output and gradient.
template <typename Fn>
void ExpectPrecisionMatches(TestDevice& device, const std::vector<CheckedTensor>& inputs,
                            const std::vector<CheckedTensor>& weights, Fn op, DType dtype,
                            double tolerance, uint64_t seed = 1) {
  internal::CheckPrecision(device, inputs, weights, internal::AsCheckedOp(std::move(op)), dtype,
                           tolerance, seed);
}

}  // namespace omni::testing
