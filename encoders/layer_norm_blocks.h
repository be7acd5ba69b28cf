// Pre-norm transformer blocks with LayerNorm and a plain MLP, as ViTs and Whisper have them:
//
//   x += output(attention(attention_norm(x)))        x += fc2(gelu(fc1(mlp_norm(x))))
//
// over packed rows, attention within segments, with RoPE on q and k where a table is given.
#pragma once

#include <string>
#include <vector>

#include "encoders/segment_attention.h"
#include "parallel/parallel_config.h"
#include "parallel/parameter_list.h"
#include "runtime/ops/activation.h"
#include "runtime/ops/flops.h"
#include "runtime/ops/norm.h"
#include "runtime/ops/rope.h"

namespace omni::encoders {

struct LayerNormBlocksConfig {
  int32_t hidden = 0, layers = 0, heads = 0, ffn = 0;
  float norm_eps = 1e-5f;
  GeluKind gelu = GeluKind::kErf;
  bool key_bias = true;  // false: q, v and output have a bias, k has none (Whisper)

  int32_t head_dim() const { return hidden / heads; }
};

class LayerNormBlocks {
 public:
  explicit LayerNormBlocks(const LayerNormBlocksConfig& config)
      : config_(config), blocks_(config.layers) {}
  LayerNormBlocks(const LayerNormBlocks&) = delete;  // the list points at the weights
  LayerNormBlocks& operator=(const LayerNormBlocks&) = delete;

  // "<prefix>.<i>." + attention_norm, attention.qkv (or attention.qv and attention.k without key
  // bias), attention.output, mlp_norm, mlp.fc1, mlp.fc2; "<prefix>" is "vision.blocks".
  void Declare(const std::string& prefix, const parallel::InitConfig& init,
               parallel::ParameterList* list);

  struct Input {
    Var x_PH;
    const Var* positions_PH = nullptr;  // added to x first
    SegmentAttention attention;
    const RopeTable* rope = nullptr;
    parallel::Recompute recompute = parallel::Recompute::kNone;
  };
  // The hidden states after each block, one Var per block.
  std::vector<Var> Forward(ExecContext& ctx, const Input& input) const;

  // For so many rows, of which so many pairs see each other.
  void CountFlops(int64_t num_rows, int64_t pairs, FlopCounter* counter) const;

 private:
  struct Block {
    parallel::Affine attention_norm, mlp_norm, output, fc1, fc2;
    parallel::Affine qkv;  // q and v only without key bias
    Weight k;

    bool trains() const;  // anything after its own attention_norm
  };
  // The states and their norm before a block -> after it (after the last: the states twice).
  AddNormResult Run(ExecContext& ctx, size_t layer, const AddNormResult& x, const RopeTable* rope,
                    const Input& input) const;
  Var Attention(ExecContext& ctx, const Block& block, const Var& normed_PH, const RopeTable* rope,
                const Input& input) const;

  const LayerNormBlocksConfig config_;
  std::vector<Block> blocks_;
};

}  // namespace omni::encoders
