// Losses that keep a router's choices balanced and its logits small.
#pragma once

#include <functional>

#include "absl/types/span.h"
#include "runtime/ops/moe.h"

namespace omni {

// Over the (token, layer) pairs of a set: f_e, the (token, k) pairs sent to expert e over the
// tokens (so the f sum to top_k), and P_e, the mean probability of e:
//
//   E sum over e of f_e P_e        top_k when balanced, up to E when one expert gets it all
//
// (Fedus et al. 2021, arXiv 2101.03961, eq. 4, with transformers' normalisation). Only P carries a
// gradient. What a set is:
enum class BalanceSets : uint8_t {
  kSequences,  // each sequence in each layer; the losses are added
  kPooled      // all tokens of all layers at once, as transformers' load_balancing_loss_func
};

// Where sequences lie on several ranks (parallel/ops/balance.h): what those at hand lack.
struct SharedSequences {
  absl::Span<const int64_t> lengths;  // [S]: of each sequence, with the tokens elsewhere
  // Enqueues: adds up over the ranks, in place, the pairs of each set and expert.
  std::function<void(ExecContext&, const TensorView& pairs)> sum_pairs;
};

// scale x the loss, a scalar [1] in the dtype of routers. `layers`: all over the same T tokens and
// as many experts, at least one. cu_sequences [S + 1] on the host, from 0 to T; unused when pooled.
// With `shared`, the loss is the share of the tokens at hand in P; the f are of all.
Var BalanceLoss(ExecContext& ctx, absl::Span<const Routing> layers,
                absl::Span<const int32_t> cu_sequences, BalanceSets sets, double scale,
                const SharedSequences* shared = nullptr);

// scale x the sum over layers and tokens of (log sum exp of the logits)^2 (Zoph et al. 2022, arXiv
// 2202.08906, eq. 5), a scalar [1].
Var RouterZLoss(ExecContext& ctx, absl::Span<const Routing> layers, double scale);

}  // namespace omni
