// Which linear maps of a model get a low-rank adapter, and the adapters' parameters.
//
//   model:
//     lora: {rank: 8, alpha: 16, targets: [attention.q, attention.v]}
//
// Targets are names of linear maps, with fused weights taken apart: decoder.layers.3.attention.q
// (k, v, output), mlp.gate, mlp.up, mlp.down, moe.gate (up, down: of every expert of the layer,
// each with an adapter of its own), vision.blocks.0.attention.q and so on. A target matches every
// map whose name holds it, segment by segment: "attention.q" in every layer, "mlp" all three,
// "decoder" everything there. Embeddings, heads, convolutions and routers have none.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/parameter.h"
#include "runtime/base/config.h"
#include "runtime/ops/lora.h"

namespace omni::parallel {

struct LoraConfig {
  int32_t rank = 0;  // 0: no adapters
  double alpha = 16.0;
  std::vector<std::string> targets;

  double scale() const { return alpha / rank; }
};
absl::Status Read(const ConfigNode& node, LoraConfig* out);

// One weight with adapters.
struct LoraTarget {
  std::string path;                      // of the weight: "decoder.layers.3.attention.qkv.weight"
  std::vector<std::string> names;        // of its parts that have one: "decoder...attention.q"
  std::vector<LoraAdapter::Part> parts;  // their rows, of experts those of each
  ParameterSpec a, b;                    // "lora.<path>.a" and ".b"; B starts at zero
};

// In the order of `specs`. InvalidArgument, naming the target and the nearest name, if one matches
// nothing.
absl::StatusOr<std::vector<LoraTarget>> FindLoraTargets(const LoraConfig& config,
                                                        const std::vector<ParameterSpec>& specs);

}  // namespace omni::parallel
