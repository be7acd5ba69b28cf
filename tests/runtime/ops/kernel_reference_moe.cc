// The specification of the mixture-of-experts kernels: plain loops in fp64.
#include <algorithm>
#include <numeric>

#include "runtime/device/args/grouped_linear.h"
#include "runtime/device/args/moe.h"
#include "tests/runtime/ops/kernel_problem.h"

namespace omni::testing {
namespace {

using Values = std::vector<double>;

// K of E distinct experts for each token, without pattern; expert 1 gets none where others do.
struct Choice {
  int64_t num_experts, top_k;
  std::vector<int64_t> experts;          // [T, K]
  std::vector<int64_t> offsets, tokens;  // sorted, each expert's in the order of the tokens
  std::vector<int64_t> rows;             // [T, K]
};
Choice Choose(int64_t rows, int64_t num_experts, int64_t top_k) {
  Choice c{num_experts, top_k, {}, {0}, {}, {}};
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t k = 0; k < top_k; ++k) {
      const int64_t e = (t * t + 2 * k) % num_experts;
      c.experts.push_back(e == 1 && num_experts > 2 * top_k ? 2 : e);
    }
  c.rows.resize(c.experts.size());
  for (int64_t e = 0; e < num_experts; ++e) {
    for (size_t p = 0; p < c.experts.size(); ++p) {
      if (c.experts[p] != e) continue;
      c.rows[p] = static_cast<int64_t>(c.tokens.size());
      c.tokens.push_back(static_cast<int64_t>(p) / top_k);
    }
    c.offsets.push_back(static_cast<int64_t>(c.tokens.size()));
  }
  return c;
}
Values Doubles(const std::vector<int64_t>& values) { return {values.begin(), values.end()}; }

TensorView Ints(KernelProblem& p, const std::vector<int64_t>& values, int64_t rows) {
  const auto count = static_cast<int64_t>(values.size());
  return p.Integers(values).view.Reshape({rows, rows == 0 ? 1 : count / rows});
}

void Route(bool backward, int64_t rows, int64_t num_experts, bool second, KernelProblem& p) {
  const int64_t top_k = std::min<int64_t>(num_experts, second ? 3 : 2);
  const bool normalize = !second;
  const HostTensor logits = p.Random({rows, num_experts}, 2.0), bias = p.Random({num_experts}, 0.1);
  Values probs(rows * num_experts), lse(rows), weights, sums(rows);
  std::vector<int64_t> experts;
  for (int64_t t = 0; t < rows; ++t) {
    double sum = 0.0;
    for (int64_t e = 0; e < num_experts; ++e) sum += std::exp(logits(t, e));
    lse[t] = std::log(sum);
    for (int64_t e = 0; e < num_experts; ++e)
      probs[t * num_experts + e] = std::exp(logits(t, e)) / sum;
    std::vector<int64_t> order(num_experts);
    std::iota(order.begin(), order.end(), 0);
    const auto score = [&](int64_t e) {
      return probs[t * num_experts + e] + (second ? bias(e) : 0.0);
    };
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return score(a) > score(b); });
    for (int64_t k = 0; k < top_k; ++k) sums[t] += probs[t * num_experts + order[k]];
    for (int64_t k = 0; k < top_k; ++k) {
      experts.push_back(order[k]);
      weights.push_back(probs[t * num_experts + order[k]] / (normalize ? sums[t] : 1.0));
    }
  }
  if (!backward) {
    MoeRouteForwardArgs args;
    args.logits_TE = logits.view;
    if (second) args.selection_bias_E = bias.view;
    args.probs_TE = p.Output({rows, num_experts}, probs);
    args.lse_T = p.Output({rows}, lse);
    args.experts_TK = p.Output(DType::kInt32, {rows, top_k}, Doubles(experts));
    args.weights_TK = p.Output({rows, top_k}, weights);
    args.normalize = normalize;
    return p.SetArgs(args);
  }
  const HostTensor grad_weights = p.Random({rows, top_k});
  const HostTensor grad_probs = p.Random({rows, num_experts}), grad_lse = p.Random({rows});
  Values grad(rows * num_experts);
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t j = 0; j < num_experts; ++j) {
      // d probs[e] / d logits[j] = probs[e] (1{e = j} - probs[j]), term by term.
      const auto dprob = [&](int64_t e) {
        return probs[t * num_experts + e] * ((e == j ? 1.0 : 0.0) - probs[t * num_experts + j]);
      };
      double& sum = grad[t * num_experts + j];
      double dsum = 0.0;
      for (int64_t k = 0; k < top_k; ++k) dsum += dprob(experts[t * top_k + k]);
      for (int64_t k = 0; k < top_k; ++k) {
        const int64_t e = experts[t * top_k + k];
        const double w = probs[t * num_experts + e];
        sum += grad_weights(t, k) *
               (normalize ? dprob(e) / sums[t] - w * dsum / (sums[t] * sums[t]) : dprob(e));
      }
      if (second) {
        for (int64_t e = 0; e < num_experts; ++e) sum += grad_probs(t, e) * dprob(e);
        sum += grad_lse(t) * probs[t * num_experts + j];
      }
    }
  MoeRouteBackwardArgs args;
  args.probs_TE = p.Sums(probs).view.Reshape({rows, num_experts});
  args.experts_TK = Ints(p, experts, rows);
  args.weights_TK = p.Sums(weights).view.Reshape({rows, top_k});
  if (rows == 0) {
    args.probs_TE = p.Random({0, num_experts}).view;
    args.weights_TK = p.Random({0, top_k}).view;
  }
  args.grad_weights_TK = grad_weights.view;
  if (second) {
    args.grad_probs_TE = grad_probs.view;
    args.grad_lse_T = grad_lse.view;
  }
  args.grad_logits_TE = p.Output({rows, num_experts}, grad);
  args.normalize = normalize;
  p.SetArgs(args);
}

void Sort(int64_t rows, int64_t num_experts, int64_t top_k, KernelProblem& p) {
  const Choice c = Choose(rows, num_experts, top_k);
  MoeSortArgs args;
  args.experts_TK = Ints(p, c.experts, rows);
  args.offsets_E1 = p.Output(DType::kInt32, {num_experts + 1}, Doubles(c.offsets));
  args.tokens_R = p.Output(DType::kInt32, {rows * top_k}, Doubles(c.tokens));
  args.rows_TK = p.Output(DType::kInt32, {rows, top_k}, Doubles(c.rows));
  p.SetArgs(args);
}

void Combine(bool backward, int64_t rows, int64_t width, bool weighted, KernelProblem& p) {
  const Choice c = Choose(rows, 5, weighted ? 3 : 1);
  const int64_t top_k = c.top_k, pairs = rows * top_k;
  const HostTensor x = p.Random({pairs, width}), dy = p.Random({rows, width});
  const HostTensor weights = p.RandomSums({rows, top_k});
  Values y(rows * width), dx(pairs * width), dweights(pairs);
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t k = 0; k < top_k; ++k) {
      const int64_t row = c.rows[t * top_k + k];
      const double weight = weighted ? weights(t, k) : 1.0;
      for (int64_t i = 0; i < width; ++i) {
        y[t * width + i] += weight * x(row, i);
        dx[row * width + i] = weight * dy(t, i);
        dweights[t * top_k + k] += x(row, i) * dy(t, i);
      }
    }
  const TensorView index = Ints(p, c.rows, rows), none;
  const TensorView given = weighted ? weights.view : none;
  if (!backward)
    return p.SetArgs(MoeCombineForwardArgs{x.view, index, given, p.Output({rows, width}, y)});
  p.SetArgs(
      MoeCombineBackwardArgs{x.view, index, given, dy.view, p.Output({pairs, width}, dx),
                             weighted ? p.Output(p.sums_dtype(), {rows, top_k}, dweights) : none});
}

void Grouped(OpId op, int64_t rows, int64_t width, int64_t groups, KernelProblem& p) {
  const Choice c = Choose(rows, groups, 1);
  const int64_t outs = width / 2 + 3;
  const HostTensor x = p.Random({rows, width}), w = p.Random({groups, outs, width});
  const HostTensor dy = p.Random({rows, outs}), dw = p.RandomSums({groups, outs, width});
  Values y(rows * outs), dx(rows * width), dw_sum = dw.values;
  for (int64_t e = 0; e < groups; ++e)
    for (int64_t r = c.offsets[e]; r < c.offsets[e + 1]; ++r)
      for (int64_t o = 0; o < outs; ++o)
        for (int64_t i = 0; i < width; ++i) {
          const int64_t at = (e * outs + o) * width + i;
          y[r * outs + o] += x(r, i) * w(at);
          dx[r * width + i] += dy(r, o) * w(at);
          dw_sum[at] += dy(r, o) * x(r, i);
        }
  const TensorView offsets = p.Integers(c.offsets).view;
  if (op == OpId::kGroupedLinearForward) {
    p.SetArgs(GroupedLinearForwardArgs{x.view, w.view, offsets, p.Output({rows, outs}, y)});
  } else if (op == OpId::kGroupedLinearBackwardInput) {
    p.SetArgs(
        GroupedLinearBackwardInputArgs{dy.view, w.view, offsets, p.Output({rows, width}, dx)});
  } else {
    p.Expect(dw.view, dw_sum);
    p.SetArgs(GroupedLinearBackwardWeightArgs{x.view, dy.view, offsets, dw.view});
  }
}

void Gate(bool backward, int64_t rows, int64_t width, KernelProblem& p) {
  const HostTensor x = p.Random({rows, width}), gate = p.Random({rows, 1}, 2.0);
  const HostTensor dy = p.Random({rows, width});
  Values y, dx, dgate(rows);
  for (int64_t t = 0; t < rows; ++t) {
    const double s = 1.0 / (1.0 + std::exp(-gate(t)));
    for (int64_t i = 0; i < width; ++i) {
      y.push_back(s * x(t, i));
      dx.push_back(s * dy(t, i));
      dgate[t] += s * (1.0 - s) * x(t, i) * dy(t, i);
    }
  }
  if (!backward)
    return p.SetArgs(SigmoidGateForwardArgs{x.view, gate.view, p.Output({rows, width}, y)});
  p.SetArgs(SigmoidGateBackwardArgs{x.view, gate.view, dy.view, p.Output({rows, width}, dx),
                                    p.Output({rows, 1}, dgate)});
}

// Three runs of tokens, one of them empty.
std::vector<int64_t> Runs(int64_t rows) { return {0, rows / 3, rows / 3, rows}; }

void BalanceStatistics(int64_t rows, int64_t num_experts, bool add, KernelProblem& p) {
  const Choice c = Choose(rows, num_experts, 2);
  const std::vector<int64_t> cu = Runs(rows);
  const HostTensor probs = p.Random({rows, num_experts});
  const HostTensor pairs = p.Random({3, num_experts}), prob_sums = p.Random({3, num_experts});
  Values new_pairs(3 * num_experts), new_sums(3 * num_experts);
  if (add) {
    new_pairs = pairs.values;
    new_sums = prob_sums.values;
  }
  for (int64_t s = 0; s < 3; ++s)
    for (int64_t t = cu[s]; t < cu[s + 1]; ++t) {
      for (int64_t e = 0; e < num_experts; ++e) new_sums[s * num_experts + e] += probs(t, e);
      for (int64_t k = 0; k < 2; ++k) new_pairs[s * num_experts + c.experts[t * 2 + k]] += 1.0;
    }
  p.Expect(pairs.view, new_pairs);
  p.Expect(prob_sums.view, new_sums);
  BalanceStatisticsArgs args;
  args.probs_TE = probs.view;
  args.experts_TK = Ints(p, c.experts, rows);
  if (rows == 0) args.experts_TK = p.Integers({}).view.Reshape({0, 2});
  args.cu_S1 = p.Integers(cu).view;
  args.pairs_SE = pairs.view;
  args.prob_sums_SE = prob_sums.view;
  args.add = add;
  p.SetArgs(args);
}

// The first run has twice the tokens that are rows here.
void BalanceLoss(bool backward, int64_t rows, int64_t num_experts, bool second, KernelProblem& p) {
  const double scale = 0.3, grad_loss = 0.75;
  const int32_t num_layers = second ? 2 : 1;
  const std::vector<int64_t> cu = Runs(rows), tokens = {2 * cu[1], 0, rows - cu[2]};
  const HostTensor pairs = p.Random({3, num_experts}), prob_sums = p.Random({3, num_experts});
  const HostTensor loss = p.Sums({0.5});
  Values dprobs(rows * num_experts);
  double new_loss = second ? 0.5 : 0.0;
  for (int64_t s = 0; s < 3; ++s) {
    const double n = static_cast<double>(tokens[s] * num_layers);
    for (int64_t e = 0; e < num_experts && n > 0; ++e) {
      const double factor = scale * static_cast<double>(num_experts) * pairs(s, e) / (n * n);
      new_loss += factor * prob_sums(s, e);
      for (int64_t t = cu[s]; t < cu[s + 1]; ++t) dprobs[t * num_experts + e] = grad_loss * factor;
    }
  }
  const TensorView tokens_view = p.Integers(tokens).view;
  if (backward)
    return p.SetArgs(BalanceLossBackwardArgs{.grad_loss = p.Sums({grad_loss}).view,
                                             .pairs_SE = pairs.view,
                                             .tokens_S = tokens_view,
                                             .cu_S1 = p.Integers(cu).view,
                                             .grad_probs_TE = p.Output({rows, num_experts}, dprobs),
                                             .num_layers = num_layers,
                                             .scale = scale});
  p.Expect(loss.view, {new_loss});
  p.SetArgs(BalanceLossForwardArgs{.pairs_SE = pairs.view,
                                   .prob_sums_SE = prob_sums.view,
                                   .tokens_S = tokens_view,
                                   .loss = loss.view,
                                   .add_loss = second,
                                   .num_layers = num_layers,
                                   .scale = scale});
}

void ZLoss(bool backward, int64_t rows, bool second, KernelProblem& p) {
  const HostTensor lse = p.Random({rows}, 2.0), loss = p.Sums({0.5});
  double sum = second ? 0.5 : 0.0;
  Values dlse;
  for (int64_t t = 0; t < rows; ++t) {
    sum += 0.3 * lse(t) * lse(t);
    dlse.push_back(0.5 * 2.0 * 0.3 * lse(t));
  }
  if (backward)
    return p.SetArgs(ZLossBackwardArgs{loss.view, lse.view, p.Output({rows}, dlse), 0.3});
  p.Expect(loss.view, {sum});
  p.SetArgs(ZLossForwardArgs{lse.view, loss.view, second, 0.3});
}

}  // namespace

bool MakeMoeReference(OpId op, int64_t rows, int64_t width, bool second, KernelProblem& p) {
  switch (op) {
    case OpId::kMoeRouteForward:
    case OpId::kMoeRouteBackward:
      Route(op == OpId::kMoeRouteBackward, rows, width, second, p);
      return true;
    case OpId::kMoeSort:
      Sort(rows, width, second ? 3 : 1, p);
      return true;
    case OpId::kMoeCombineForward:
    case OpId::kMoeCombineBackward:
      Combine(op == OpId::kMoeCombineBackward, rows, width, second, p);
      return true;
    case OpId::kGroupedLinearForward:
    case OpId::kGroupedLinearBackwardInput:
    case OpId::kGroupedLinearBackwardWeight:
      Grouped(op, rows, width, second ? 7 : 1, p);
      return true;
    case OpId::kSigmoidGateForward:
    case OpId::kSigmoidGateBackward:
      Gate(op == OpId::kSigmoidGateBackward, rows, width, p);
      return !second;
    case OpId::kBalanceStatistics:
      BalanceStatistics(rows, width, second, p);
      return true;
    case OpId::kBalanceLossForward:
    case OpId::kBalanceLossBackward:
      BalanceLoss(op == OpId::kBalanceLossBackward, rows, width, second, p);
      return true;
    case OpId::kZLossForward:
    case OpId::kZLossBackward:
      ZLoss(op == OpId::kZLossBackward, rows, second, p);
      return true;
    default:
      return false;
  }
}

}  // namespace omni::testing
