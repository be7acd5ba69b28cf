// The specification of the cross-entropy kernels: plain loops in fp64, nothing clever.
#include <algorithm>
#include <limits>

#include "runtime/device/args/cross_entropy.h"
#include "tests/runtime/ops/kernel_problem.h"

namespace omni::testing {
namespace {

using Values = std::vector<double>;

void CrossEntropy(int64_t rows, int64_t width, bool with_grads, KernelProblem& p) {
  const int64_t classes = 2 * width + 1;
  const double scale = 0.25;
  const HostTensor x = p.Random({rows, width}), w = p.Random({classes, width}, 0.3);
  std::vector<int64_t> targets, argmax;
  for (int64_t t = 0; t < rows; ++t) targets.push_back(t % 3 == 1 ? -1 : t * 7 % classes);
  Values losses(rows), dx(rows * width), dw(classes * width);
  double loss = 0.0;
  for (int64_t t = 0; t < rows; ++t) {
    argmax.push_back(-1);
    if (targets[t] < 0) continue;
    Values logits(classes);
    for (int64_t v = 0; v < classes; ++v)
      for (int64_t i = 0; i < width; ++i) logits[v] += x(t, i) * w(v, i);
    const auto top = std::max_element(logits.begin(), logits.end());
    argmax[t] = top - logits.begin();
    double sum = 0.0;
    for (const double logit : logits) sum += std::exp(logit - *top);
    losses[t] = std::log(sum) + *top - logits[targets[t]];
    loss += scale * losses[t];
    for (int64_t v = 0; v < classes; ++v) {
      const double d = scale * (std::exp(logits[v] - *top) / sum - (v == targets[t] ? 1.0 : 0.0));
      for (int64_t i = 0; i < width; ++i) {
        dx[t * width + i] += d * w(v, i);
        dw[v * width + i] += d * x(t, i);
      }
    }
  }
  CrossEntropyForwardArgs args;
  args.hidden_TH = x.view;
  args.head_VH = w.view;
  args.targets_T = p.Integers(targets).view;
  args.loss = p.Output(p.sums_dtype(), {1}, {loss});
  args.losses_T = p.Output(p.sums_dtype(), {rows}, losses);
  args.argmax_T = p.Output(DType::kInt32, {rows}, Values(argmax.begin(), argmax.end()));
  if (with_grads) {
    args.grad_hidden_TH = p.Output({rows, width}, dx);
    args.grad_head_VH = p.Output(p.sums_dtype(), {classes, width}, dw);
  }
  args.scale = scale;
  p.SetArgs(args);
}

void CrossEntropyBackward(int64_t rows, int64_t width, bool accumulate, KernelProblem& p) {
  const HostTensor factor = p.Sums({0.75});
  const HostTensor x = accumulate ? p.RandomSums({rows, width}) : p.Random({rows, width});
  const HostTensor y = accumulate ? p.RandomSums({rows, width}) : p.Random({rows, width});
  Values sum = y.values;
  for (size_t i = 0; i < sum.size(); ++i) sum[i] = 0.75 * x(i) + (accumulate ? sum[i] : 0.0);
  p.Expect(y.view, sum);
  p.SetArgs(CrossEntropyBackwardArgs{factor.view, x.view, y.view, accumulate});
}

// {largest, sum of exp(logit - largest), logit of the target or 0, arg max + first}.
Values PartOf(const double* logits, int64_t count, int64_t target, int64_t first) {
  if (count == 0) return {-std::numeric_limits<double>::infinity(), 0, 0, 0};
  const double* top = std::max_element(logits, logits + count);
  double sum = 0.0;
  for (int64_t v = 0; v < count; ++v) sum += std::exp(logits[v] - *top);
  return {*top, sum, target >= 0 && target < count ? logits[target] : 0.0,
          static_cast<double>(first + (top - logits))};
}

void SoftmaxParts(int64_t rows, int64_t width, bool keeps, KernelProblem& p) {
  const HostTensor logits = p.Random({rows, width}, 2.0);
  std::vector<int64_t> targets;
  Values parts, exponentials;
  for (int64_t r = 0; r < rows; ++r) {
    targets.push_back(r * 5 % (3 * width) - width);  // a third of them here
    const double* row = logits.values.data() + r * width;
    const Values part = PartOf(row, width, targets[r], 100);
    parts.insert(parts.end(), part.begin(), part.end());
    for (int64_t v = 0; v < width; ++v) exponentials.push_back(std::exp(row[v] - part[0]));
  }
  p.Expect(logits.view, keeps ? exponentials : logits.values);
  p.SetArgs(SoftmaxPartsArgs{.logits_RV = logits.view,
                             .targets_R = p.Integers(targets).view,
                             .parts_R4 = p.Output({rows, 4}, parts),
                             .first_class = 100,
                             .keep_exponentials = keeps});
}

// Three parts, the first of one class, the second of `width` and this rank's, the third empty.
void SoftmaxJoin(int64_t rows, int64_t width, bool wants_grad, KernelProblem& p) {
  const int64_t classes = width + 1;
  const double scale = 0.25;
  const HostTensor logits = p.Random({rows, classes}, 2.0), loss = p.Sums({0.5});
  std::vector<int64_t> targets, places;
  Values parts(3 * rows * 4), exponentials, grads, losses(rows, 7.0), argmax(rows, 5.0);
  double sum = 0.5;
  for (int64_t r = 0; r < rows; ++r) {
    const double* row = logits.values.data() + r * classes;
    const int64_t target = r * 5 % classes;
    targets.push_back(target - 1);
    places.push_back(r % 3 == 1 ? -1 : rows - 1 - r);
    const Values of[] = {PartOf(row, 1, target, 0), PartOf(row + 1, width, target - 1, 1),
                         PartOf(row, 0, -1, 0)};
    for (int64_t s = 0; s < 3; ++s)
      std::copy(of[s].begin(), of[s].end(), parts.begin() + (s * rows + r) * 4);
    const Values whole = PartOf(row, classes, target, 0);
    const double row_loss = std::log(whole[1]) + whole[0] - row[target];
    if (places[r] >= 0) {
      losses[places[r]] = row_loss;
      argmax[places[r]] = whole[3];
      sum += scale * row_loss;
    }
    for (int64_t v = 1; v < classes; ++v) {
      exponentials.push_back(std::exp(row[v] - of[1][0]));
      const double softmax = std::exp(row[v] - whole[0]) / whole[1];
      grads.push_back(scale * (softmax - (v == target ? 1.0 : 0.0)));
    }
  }
  SoftmaxJoinArgs args;
  args.parts_SR4 = p.Sums(parts).view.Reshape({3, rows, 4});
  args.part = 1;
  args.logits_RV = p.Sums(exponentials).view.Reshape({rows, width});
  p.Expect(args.logits_RV, wants_grad ? grads : exponentials);
  if (!wants_grad) args.logits_RV = {};
  args.targets_R = p.Integers(targets).view;
  args.places_R = p.Integers(places).view;
  args.loss = loss.view;
  args.losses_T = p.Sums(Values(rows, 7.0)).view;
  args.argmax_T = p.Integers(std::vector<int64_t>(rows, 5)).view;
  p.Expect(args.loss, {sum});
  p.Expect(args.losses_T, losses);
  p.Expect(args.argmax_T, argmax);
  args.scale = scale;
  p.SetArgs(args);
}

}  // namespace

bool MakeLossReference(OpId op, int64_t rows, int64_t width, bool second, KernelProblem& p) {
  switch (op) {
    case OpId::kCrossEntropyForward:
      CrossEntropy(rows, width, second, p);
      return true;
    case OpId::kCrossEntropyBackward:
      CrossEntropyBackward(rows, width, second, p);
      return true;
    case OpId::kSoftmaxParts:
      SoftmaxParts(rows, width, second, p);
      return true;
    case OpId::kSoftmaxJoin:
      SoftmaxJoin(rows, width, second, p);
      return true;
    default:
      return false;
  }
}

}  // namespace omni::testing
