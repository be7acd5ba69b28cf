// What routers did over a step's global batch, and the bias that evens their loads without a loss
// (Wang et al. 2024, arXiv 2408.15664): after each step, of every MoE layer,
//
//   bias[e] += rate * sign(mean load - load[e])
//
// Loads are pairs of token and expert, summed over all ranks, so every rank keeps the same bias.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/device/exec_context.h"
#include "trainer/assemble.h"

namespace omni::trainer {

class RouterBalance {
 public:
  // `dtype`: of the model. The bias, if the recipe wants one, starts at zero.
  RouterBalance(ExecContext& ctx, const backbone::DecoderConfig& config, DType dtype);

  // What ranks must add up, zeros: the losses, then the loads [MoE layers, E]. Empty without
  // experts.
  std::vector<double> NoSums() const;
  // Adds what a microbatch did in some of the layers on this rank: losses, and offsets_E1 of every
  // MoE layer from decoder layer `first_layer` on (RoutingRecord). Waits for the stream.
  void Add(ExecContext& ctx, const std::vector<backbone::AuxiliaryLoss>& losses,
           const std::vector<TensorView>& expert_offsets, int32_t first_layer,
           std::vector<double>* sums) const;
  // "moe/balance_loss", "moe/z_loss", and the largest load of any layer over that layer's mean.
  void Measure(const std::vector<double>& sums, std::map<std::string, double>* values) const;
  // Moves the bias by the loads of a step.
  void Update(ExecContext& ctx, const std::vector<double>& sums);

  // [MoE layers, E], fp32 (fp64 in fp64); empty: none.
  const TensorView& bias_LE() const { return bias_LE_; }
  // Whether a checkpoint with tensors of these names has the bias.
  bool IsIn(const std::set<std::string>& names) const;
  // The bias under "decoder.layers.I.moe.router.selection_bias". All ranks hold all of it.
  std::vector<TensorRange> StateRanges() const;
  // After StateRanges have been filled.
  void Loaded(ExecContext& ctx);

 private:
  const backbone::DecoderConfig config_;
  const int64_t layers_, experts_;
  TensorArena arena_;
  TensorView bias_LE_;
  std::vector<double> bias_;  // the same on the host
};

}  // namespace omni::trainer
