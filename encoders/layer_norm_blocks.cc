#include "encoders/layer_norm_blocks.h"

#include "absl/strings/str_cat.h"
#include "encoders/tower_block.h"
#include "runtime/ops/ops.h"

namespace omni::encoders {

using parallel::Affine;
using parallel::Bias;
using parallel::Matrix;
using parallel::Recompute;
using parallel::Scale;

void LayerNormBlocks::Declare(const std::string& prefix, const parallel::InitConfig& init,
                              parallel::ParameterList* list) {
  const int64_t hidden = config_.hidden, ffn = config_.ffn;
  for (int32_t layer = 0; layer < config_.layers; ++layer) {
    Block& block = blocks_[layer];
    const std::string path = absl::StrCat(prefix, ".", layer, ".");
    const auto add = [&](const char* map, int64_t out, int64_t in, double std, int32_t num_stacked,
                         Affine* affine) {
      parallel::ParameterSpec spec = Matrix(path + map + ".weight", out, in, std);
      spec.num_stacked = num_stacked;
      list->Add(std::move(spec), &affine->weight);
      list->Add(Bias(path + map + ".bias", out), &affine->bias);
    };
    const auto add_norm = [&](const char* norm, Affine* affine) {
      list->Add(Scale(path + norm + ".weight", hidden), &affine->weight);
      list->Add(Bias(path + norm + ".bias", hidden), &affine->bias);
    };
    add_norm("attention_norm", &block.attention_norm);
    if (config_.key_bias) {
      add("attention.qkv", 3 * hidden, hidden, init.Std(hidden), 3, &block.qkv);
    } else {
      add("attention.qv", 2 * hidden, hidden, init.Std(hidden), 2, &block.qkv);
      list->Add(Matrix(path + "attention.k.weight", hidden, hidden, init.Std(hidden)), &block.k);
    }
    add("attention.output", hidden, hidden, init.ResidualStd(hidden, config_.layers), 1,
        &block.output);
    add_norm("mlp_norm", &block.mlp_norm);
    add("mlp.fc1", ffn, hidden, init.Std(hidden), 1, &block.fc1);
    add("mlp.fc2", hidden, ffn, init.ResidualStd(ffn, config_.layers), 1, &block.fc2);
  }
}

bool LayerNormBlocks::Block::trains() const {
  return AnyTrains({&qkv.weight, &qkv.bias, &k, &output.weight, &output.bias, &mlp_norm.weight,
                    &mlp_norm.bias, &fc1.weight, &fc1.bias, &fc2.weight, &fc2.bias});
}

Var LayerNormBlocks::Attention(ExecContext& ctx, const Block& block, const Var& normed_PH,
                               const RopeTable* rope, const Input& input) const {
  const int64_t hidden = config_.hidden;
  const Var fused = Linear(ctx, normed_PH, block.qkv.weight, &block.qkv.bias);
  SegmentAttention::Input heads{.num_heads = config_.heads, .rope = rope};
  if (config_.key_bias) {
    const std::vector<Var> parts = SplitColumns(ctx, fused, {hidden, hidden, hidden});
    heads.q_PH = parts[0];
    heads.k_PH = parts[1];
    heads.v_PH = parts[2];
  } else {
    const std::vector<Var> parts = SplitColumns(ctx, fused, {hidden, hidden});
    heads.q_PH = parts[0];
    heads.k_PH = Linear(ctx, normed_PH, block.k);
    heads.v_PH = parts[1];
  }
  const Var mixed_PH = input.attention.Attend(ctx, heads, input.recompute == Recompute::kSelective);
  return Linear(ctx, mixed_PH, block.output.weight, &block.output.bias);
}

AddNormResult LayerNormBlocks::Run(ExecContext& ctx, size_t layer, const AddNormResult& x,
                                   const RopeTable* rope, const Input& input) const {
  const Block& block = blocks_[layer];
  const auto add_norm = [&](const Var& x_PH, const Var& branch_PH, const Affine& norm) {
    return AddLayerNorm(ctx, x_PH, branch_PH, norm.weight, &norm.bias, config_.norm_eps);
  };
  const AddNormResult middle =
      add_norm(x.sum_TH, Attention(ctx, block, x.normed_TH, rope, input), block.mlp_norm);
  const Var inner_PF = Linear(ctx, middle.normed_TH, block.fc1.weight, &block.fc1.bias);
  const Var mlp_PH =
      RunPart(ctx, input.recompute == Recompute::kSelective,
              AnyTrains({&block.fc2.weight, &block.fc2.bias}), inner_PF,
              [&block, gelu = config_.gelu](ExecContext& inner, const Var& in_PF) {
                return Linear(inner, Gelu(inner, in_PF, gelu), block.fc2.weight, &block.fc2.bias);
              });
  if (layer + 1 < blocks_.size()) {
    return add_norm(middle.sum_TH, mlp_PH, blocks_[layer + 1].attention_norm);
  }
  const Var last_PH = Add(ctx, middle.sum_TH, mlp_PH);
  return {.sum_TH = last_PH, .normed_TH = last_PH};
}

std::vector<Var> LayerNormBlocks::Forward(ExecContext& ctx, const Input& input) const {
  const Affine& first_norm = blocks_[0].attention_norm;
  AddNormResult x{.sum_TH = input.x_PH, .normed_TH = {}};
  if (input.positions_PH != nullptr) {
    x = AddLayerNorm(ctx, input.x_PH, *input.positions_PH, first_norm.weight, &first_norm.bias,
                     config_.norm_eps);
  } else {
    x.normed_TH = LayerNorm(ctx, input.x_PH, first_norm.weight, &first_norm.bias, config_.norm_eps);
  }
  // What a block may use when it is run again: nothing of the tape.
  Input kept = input;
  kept.x_PH = {};
  kept.positions_PH = nullptr;
  kept.rope = nullptr;
  std::vector<Var> states;
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    bool trains = blocks_[layer].trains();
    if (layer + 1 < blocks_.size()) {
      const Affine& next_norm = blocks_[layer + 1].attention_norm;
      trains = trains || AnyTrains({&next_norm.weight, &next_norm.bias});
    }
    x = RunBlock(ctx, input.recompute == Recompute::kFull, trains, x, input.rope,
                 [this, layer, kept](ExecContext& inner, const AddNormResult& before,
                                     const RopeTable* rope) {
                   return Run(inner, layer, before, rope, kept);
                 });
    states.push_back(x.sum_TH);
  }
  return states;
}

void LayerNormBlocks::CountFlops(int64_t num_rows, int64_t pairs, FlopCounter* counter) const {
  for (const Block& block : blocks_) {
    counter->Vector(block.attention_norm.weight);
    counter->Linear(num_rows, block.qkv.weight);
    if (!config_.key_bias) counter->Linear(num_rows, block.k);
    counter->Attention(pairs, config_.heads, config_.head_dim());
    counter->Linear(num_rows, block.output.weight);
    counter->Vector(block.mlp_norm.weight);
    counter->Linear(num_rows, block.fc1.weight);
    counter->Linear(num_rows, block.fc2.weight);
  }
}

}  // namespace omni::encoders
