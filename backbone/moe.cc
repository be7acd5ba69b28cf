#include "backbone/moe.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "backbone/decoder.h"
#include "parallel/ops/balance.h"
#include "parallel/ops/experts.h"
#include "runtime/base/status.h"
#include "runtime/ops/ops.h"

namespace omni::backbone {
namespace {

absl::Status ReadBalance(const ConfigNode& node, MoeConfig* out) {
  if (node.is_null()) return absl::OkStatus();
  ConfigReader reader(node);
  reader.ReadEnum("mode", &out->balance,
                  {{"per_sequence", BalanceSets::kSequences}, {"reference", BalanceSets::kPooled}});
  reader.Read("coefficient", &out->balance_coefficient, NonNegative());
  return reader.Finish();
}

}  // namespace

bool MoeConfig::IsMoe(int32_t layer) const {
  return experts > 0 && (layer + 1) % sparse_step == 0 &&
         std::find(dense_layers.begin(), dense_layers.end(), layer) == dense_layers.end();
}

absl::Status Read(const ConfigNode& node, MoeConfig* out) {
  ConfigReader reader(node);
  reader.Read("experts", &out->experts, AtLeast(1));
  if (out->experts == 0) reader.Require("experts");
  reader.Read("top_k", &out->top_k, AtLeast(1));
  reader.Read("ffn", &out->ffn, AtLeast(1));
  if (out->ffn == 0) reader.Require("ffn");
  reader.Read("normalize_top_k", &out->normalize_top_k);
  reader.Read("shared_ffn", &out->shared_ffn, AtLeast(0));
  reader.Read("shared_gate", &out->shared_gate);
  reader.Read("sparse_step", &out->sparse_step, AtLeast(1));
  reader.Read("dense_layers", &out->dense_layers, AtLeast(0));
  reader.Keep(ReadBalance(reader.Child("balance_loss"), out));
  reader.Read("z_loss", &out->z_coefficient, NonNegative());
  reader.Read("bias_update_rate", &out->bias_update_rate, NonNegative());
  OMNI_RETURN_IF_ERROR(reader.Finish());
  if (out->top_k > out->experts) {
    return reader.Error(
        "top_k", absl::StrCat("found ", out->top_k, ", but there are ", out->experts, " experts"));
  }
  if (out->shared_gate && out->shared_ffn == 0) {
    return reader.Error("shared_gate", "there is no shared expert (shared_ffn) to gate");
  }
  return absl::OkStatus();
}

Moe::Moe(const DecoderConfig& config, const std::string& prefix, parallel::ParameterList* list)
    : config_(config.moe) {
  const int64_t hidden = config.hidden, experts = config_.experts, ffn = config_.ffn;
  // A classifier over experts, so updated as the head is.
  list->Add(parallel::Stem(absl::StrCat(prefix, "router.weight"), {experts, hidden},
                           config.init.Std(hidden)),
            &router_);
  list->Add({.path = absl::StrCat(prefix, "gate_up.weight"),
             .shape = {experts, 2 * ffn, hidden},
             .init_std = config.init.Std(hidden),
             .num_stacked = 2 * config_.experts,
             .row_dims = 2,
             .is_expert = true},
            &gate_up_);
  list->Add({.path = absl::StrCat(prefix, "down.weight"),
             .shape = {experts, hidden, ffn},
             .init_std = config.init.ResidualStd(ffn, config.layers),
             .num_stacked = config_.experts,
             .row_dims = 2,
             .is_expert = true},
            &down_);
  if (config_.shared_ffn == 0) return;
  shared_ = std::make_unique<SwiGluMlp>(config, config_.shared_ffn, absl::StrCat(prefix, "shared."),
                                        list);
  if (config_.shared_gate) {
    list->Add(parallel::Stem(absl::StrCat(prefix, "shared_gate.weight"), {1, hidden},
                             config.init.Std(hidden)),
              &shared_gate_);
  }
}

Var Moe::Forward(ExecContext& ctx, const Var& normed_TH, const parallel::SequenceContext& sequence,
                 RoutingRecord* record) const {
  const Routing routing = MoeRoute(ctx, WideLinear(ctx, normed_TH, router_),
                                   {.top_k = config_.top_k,
                                    .normalize = config_.normalize_top_k,
                                    .selection_bias_E = selection_bias_E_});
  const ExpertOrder order = MoeSort(ctx, routing.experts_TK, config_.experts);
  const parallel::ExpertExchange exchange =
      parallel::ExchangeExperts(ctx, order, sequence.groups().expert);
  const Var in_RH = parallel::DispatchRows(ctx, MoePermute(ctx, normed_TH, order), exchange);
  const Var gate_up = GroupedLinear(ctx, in_RH, gate_up_, exchange.offsets_E1);
  const Var out_RH = GroupedLinear(ctx, SwiGlu(ctx, gate_up), down_, exchange.offsets_E1);
  Var sum_TH =
      MoeUnpermute(ctx, parallel::CombineRows(ctx, out_RH, exchange), routing.weights_TK, order);
  if (record != nullptr) {
    record->routings.push_back(routing);
    record->offsets_E1.push_back(order.offsets_E1);
  }
  if (shared_ == nullptr) return sum_TH;
  Var shared_TH = shared_->Forward(ctx, normed_TH, sequence, nullptr);
  if (config_.shared_gate) {
    shared_TH = SigmoidGate(ctx, shared_TH, Linear(ctx, normed_TH, shared_gate_));
  }
  return Add(ctx, sum_TH, shared_TH);
}

void Moe::CountFlops(const parallel::SequenceContext& sequence, FlopCounter* counter) const {
  const int64_t num_rows = sequence.num_rows();
  counter->Linear(num_rows, router_);
  // As if every rank kept its rows: over the expert group they add up.
  counter->GroupedLinear(num_rows * config_.top_k, gate_up_);
  counter->GroupedLinear(num_rows * config_.top_k, down_);
  if (shared_ == nullptr) return;
  shared_->CountFlops(sequence, counter);
  if (config_.shared_gate) counter->Linear(num_rows, shared_gate_);
}

std::vector<AuxiliaryLoss> RouterLosses(ExecContext& ctx, const MoeConfig& config,
                                        int32_t num_layers, const RoutingRecord& record,
                                        const parallel::SequenceContext& sequence,
                                        const parallel::LossScales& scales) {
  std::vector<AuxiliaryLoss> losses;
  if (record.routings.empty()) return losses;
  if (scales.lane > 0) {
    const std::vector<int64_t> lengths = sequence.LaneLengths();
    const double scale = config.balance == BalanceSets::kSequences
                             ? scales.lane / num_layers
                             : scales.lane * static_cast<double>(lengths.size());
    losses.push_back(
        {.metric = "moe/balance_loss",
         .value = parallel::BalanceLoss(ctx, record.routings, sequence.OwnLanes(), lengths,
                                        config.balance, scale, sequence.groups().sequence),
         .coefficient = config.balance_coefficient});
  }
  if (scales.token > 0) {
    losses.push_back({.metric = "moe/z_loss",
                      .value = RouterZLoss(ctx, record.routings, scales.token / num_layers),
                      .coefficient = config.z_coefficient});
  }
  return losses;
}

}  // namespace omni::backbone
