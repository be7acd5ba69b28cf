// The feed-forward part of a decoder block: what stands between its second norm and the residual
// sum. A block knows only the interface.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/parameter_list.h"
#include "parallel/sequence_context.h"
#include "runtime/ops/flops.h"
#include "runtime/ops/moe.h"
#include "runtime/ops/tape.h"

namespace omni::backbone {

struct DecoderConfig;

// What the routers of a microbatch did, MoE layer by MoE layer.
struct RoutingRecord {
  std::vector<Routing> routings;
  // [E + 1] int32: expert e had offsets[e + 1] - offsets[e] rows.
  std::vector<TensorView> offsets_E1;
};

class FeedForward {
 public:
  virtual ~FeedForward() = default;

  // [T, H] -> [T, H], this rank's rows; T may be 0. A layer with a router appends to `record`,
  // unless it is null.
  virtual Var Forward(ExecContext& ctx, const Var& normed_TH,
                      const parallel::SequenceContext& sequence, RoutingRecord* record) const = 0;
  // This rank's share, as bound now.
  virtual void CountFlops(const parallel::SequenceContext& sequence,
                          FlopCounter* counter) const = 0;
};

// down(silu(gate x) * up x), as in Llama and Qwen.
class SwiGluMlp : public FeedForward {
 public:
  // Declares `prefix` + "gate_up.weight" [2 ffn, hidden], gate rows first, and "down.weight"
  // [hidden, ffn] in `list`. Stays where it is as long as the list is used.
  SwiGluMlp(const DecoderConfig& config, int64_t ffn, const std::string& prefix,
            parallel::ParameterList* list);
  SwiGluMlp(const SwiGluMlp&) = delete;
  SwiGluMlp& operator=(const SwiGluMlp&) = delete;

  Var Forward(ExecContext& ctx, const Var& normed_TH, const parallel::SequenceContext& sequence,
              RoutingRecord* record) const override;
  void CountFlops(const parallel::SequenceContext& sequence, FlopCounter* counter) const override;

 private:
  Weight gate_up_, down_;
};

}  // namespace omni::backbone
