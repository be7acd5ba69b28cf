// Mixture-of-experts blocks, as in Qwen3-MoE; with a shared expert behind a gate, as in Qwen2-MoE;
// balanced by a loss, or by a bias on the choice that no gradient trains (Wang et al. 2024, arXiv
// 2408.15664; DeepSeek-V3).
//
//   moe: {experts: 128, top_k: 8, ffn: 768, normalize_top_k: true, shared_ffn: 0,
//         shared_gate: false, sparse_step: 1, dense_layers: [],
//         balance_loss: {mode: per_sequence, coefficient: 1e-3}, z_loss: 0, bias_update_rate: 0}
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backbone/feed_forward.h"
#include "parallel/pack.h"
#include "runtime/base/config.h"
#include "runtime/ops/router_losses.h"

namespace omni::backbone {

struct MoeConfig {
  int32_t experts = 0;  // 0: the decoder has no MoE layers
  int32_t top_k = 1;
  int32_t ffn = 0;              // of one expert
  bool normalize_top_k = true;  // the chosen experts' weights sum to 1
  int32_t shared_ffn = 0;       // of an expert every token uses besides; 0: none
  bool shared_gate = false;     // sigmoid of a linear map of the token, times the shared expert
  int32_t sparse_step = 1;      // layer i is MoE if (i + 1) % sparse_step == 0 ...
  std::vector<int32_t> dense_layers;              // ... and it is not one of these
  BalanceSets balance = BalanceSets::kSequences;  // per_sequence, or reference: pooled
  double balance_coefficient = 1e-3;
  double z_coefficient = 0.0;
  double bias_update_rate = 0.0;  // 0: no selection bias

  bool IsMoe(int32_t layer) const;
};
absl::Status Read(const ConfigNode& node, MoeConfig* out);

class Moe : public FeedForward {
 public:
  // Declares, after `prefix`: "router.weight" [E, H], "gate_up.weight" [E, 2 ffn, H] (of each
  // expert the gate's rows first), "down.weight" [E, H, ffn], and of a shared expert
  // "shared.gate_up.weight", "shared.down.weight" and "shared_gate.weight" [1, H].
  Moe(const DecoderConfig& config, const std::string& prefix, parallel::ParameterList* list);
  Moe(const Moe&) = delete;
  Moe& operator=(const Moe&) = delete;

  // [E], fp32 (fp64 in fp64); empty: none.
  void BindSelectionBias(const TensorView& bias_E) { selection_bias_E_ = bias_E; }

  Var Forward(ExecContext& ctx, const Var& normed_TH, const parallel::SequenceContext& sequence,
              RoutingRecord* record) const override;
  void CountFlops(const parallel::SequenceContext& sequence, FlopCounter* counter) const override;

 private:
  const MoeConfig config_;
  Weight router_, gate_up_, down_, shared_gate_;
  std::unique_ptr<SwiGluMlp> shared_;
  TensorView selection_bias_E_;
};

// A loss beside that of the tokens: `coefficient` times it is part of what is minimised.
struct AuxiliaryLoss {
  const char* metric;  // its name among the step's values
  Var value;  // scalar [1]; over the microbatches of a global batch they add up to the metric
  double coefficient = 0.0;
};

// The losses of a microbatch's MoE layers, scaled so that over all microbatches they add up to
//   balance, per_sequence: the mean over the lanes' packed sequences and the layers
//   balance, reference:    for one microbatch transformers' value; the mean over microbatches by
//                          their lanes. Depends on the layout: for comparisons
//   z:                     the mean over tokens and layers
// Empty if the record is, or the scales are zero. Where ranks share the sequences, each has its
// share of the values; the record may be of some of the decoder's `num_layers` MoE layers.
std::vector<AuxiliaryLoss> RouterLosses(ExecContext& ctx, const MoeConfig& config,
                                        int32_t num_layers, const RoutingRecord& record,
                                        const parallel::SequenceContext& sequence,
                                        const parallel::LossScales& scales);

}  // namespace omni::backbone
