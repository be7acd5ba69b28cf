// The walk over a registry that holds each kernel against its reference, and how exact it must be.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "tests/runtime/ops/kernel_problem.h"

namespace omni::testing {

// Allowed ||found - expected|| / ||expected|| of a tensor. A product's rounding grows with the
// root of its depth, which is at most 515 here; bf16 rounds results (2^-9 each at most) and, in the
// backward passes, has statistics of rounded rows.
struct Tolerance {
  double fp64, fp32, bf16;
};
inline Tolerance ToleranceOf(OpId op) {
  static const std::map<OpId, Tolerance> kTable = {
      {OpId::kLinearForward, {1e-14, 5e-7, 4e-3}},
      {OpId::kLinearBackwardInput, {1e-14, 5e-7, 4e-3}},
      {OpId::kLinearBackwardWeight, {1e-14, 5e-7, 1e-6}},
      {OpId::kEmbeddingForward, {0, 0, 0}},
      {OpId::kEmbeddingBackward, {1e-15, 2e-7, 2e-7}},
      {OpId::kGatherRows, {0, 0, 0}},
      {OpId::kScatterRows, {0, 0, 0}},
      {OpId::kScatterAddRows, {1e-15, 2e-7, 3e-3}},
      {OpId::kInterpolateRowsForward, {1e-15, 2e-7, 3e-3}},
      {OpId::kInterpolateRowsBackward, {1e-15, 5e-7, 5e-7}},
      {OpId::kPatchNormalize, {1e-14, 5e-7, 3e-3}},
      {OpId::kCrossEntropyBackward, {1e-15, 2e-7, 3e-3}},
      {OpId::kCrossEntropyForward, {1e-13, 1e-6, 4e-3}},
      {OpId::kGroupedLinearForward, {1e-14, 5e-7, 4e-3}},
      {OpId::kGroupedLinearBackwardInput, {1e-14, 5e-7, 4e-3}},
      {OpId::kGroupedLinearBackwardWeight, {1e-14, 5e-7, 1e-6}},
      {OpId::kMoeSort, {0, 0, 0}},
      {OpId::kNewtonSchulz, {1e-13, 2e-6, 0}},  // up to fifteen products, each of the one before
  };
  const auto found = kTable.find(op);
  return found == kTable.end() ? Tolerance{1e-13, 5e-7, 4e-3} : found->second;
}
inline double ToleranceOf(const KernelEntry& entry) {
  const Tolerance tolerance = ToleranceOf(entry.op);
  return entry.dtype == DType::kFloat64   ? tolerance.fp64
         : entry.dtype == DType::kFloat32 ? tolerance.fp32
                                          : tolerance.bf16;
}

struct Shape {
  int64_t rows, width;
};
inline constexpr Shape kShapes[] = {{0, 7},    {1, 1},   {1, 64},   {3, 5},
                                    {17, 130}, {70, 48}, {410, 257}};

// Calls body(entry, problem) for every kernel of the registry whose op has a reference.
template <typename Body>
void ForEachCase(const KernelRegistry& registry, const Body& body) {
  for (const KernelEntry& entry : registry.entries())
    for (const Shape& shape : kShapes)
      for (int variant = 0; variant < 3; ++variant) {
        KernelProblem problem(entry.dtype, 1);
        if (!MakeReference(entry.op, shape.rows, shape.width, variant, problem)) continue;
        SCOPED_TRACE(std::string(entry.name) + " rows " + std::to_string(shape.rows) + " width " +
                     std::to_string(shape.width) + " variant " + std::to_string(variant));
        body(entry, problem);
      }
}

// The problem's outputs, on the host, hold what they should.
inline void ExpectResults(const KernelEntry& entry, const KernelProblem& problem) {
  for (const auto& [view, expected] : problem.outputs()) {
    double error = 0.0, norm = 0.0;
    for (size_t i = 0; i < expected.size(); ++i) {
      error += std::pow(KernelProblem::Read(view, i) - expected[i], 2);
      norm += std::pow(expected[i], 2);
    }
    // Tiny expectations (one element near a zero) are held to an absolute 1.
    const double allowed = ToleranceOf(entry) * std::max(1.0, std::sqrt(norm));
    EXPECT_LE(std::sqrt(error), allowed) << view.DebugString();
  }
}

}  // namespace omni::testing
