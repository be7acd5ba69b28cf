#include "encoders/layer_norm_blocks.h"

#include "absl/strings/str_cat.h"
#include "runtime/ops/ops.h"

namespace omni::encoders {

using parallel::Affine;
using parallel::Bias;
using parallel::Matrix;
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

Var LayerNormBlocks::Attention(ExecContext& ctx, const Block& block, const Var& normed_PH,
                               const Input& input) const {
  const int64_t num_rows = normed_PH.value.size(0), hidden = config_.hidden;
  const auto heads = [&](const Var& x_PH) {
    return Reshape(ctx, x_PH, {num_rows, config_.heads, config_.head_dim()});
  };
  const Var fused = Linear(ctx, normed_PH, block.qkv.weight, &block.qkv.bias);
  Var q_PND, k_PND, v_PND;
  if (config_.key_bias) {
    const std::vector<Var> parts = SplitColumns(ctx, fused, {hidden, hidden, hidden});
    q_PND = heads(parts[0]);
    k_PND = heads(parts[1]);
    v_PND = heads(parts[2]);
  } else {
    const std::vector<Var> parts = SplitColumns(ctx, fused, {hidden, hidden});
    q_PND = heads(parts[0]);
    k_PND = heads(Linear(ctx, normed_PH, block.k));
    v_PND = heads(parts[1]);
  }
  if (input.rope != nullptr) {
    q_PND = Rope(ctx, q_PND, input.rope->cos_TR, input.rope->sin_TR);
    k_PND = Rope(ctx, k_PND, input.rope->cos_TR, input.rope->sin_TR);
  }
  const Var mixed_PND = VarlenAttention(ctx, q_PND, k_PND, v_PND, input.cu_seqlens, {});
  return Linear(ctx, Reshape(ctx, mixed_PND, {num_rows, hidden}), block.output.weight,
                &block.output.bias);
}

std::vector<Var> LayerNormBlocks::Forward(ExecContext& ctx, const Input& input) const {
  const auto add_norm = [&](const Var& x_PH, const Var& branch_PH, const Affine& norm) {
    return AddLayerNorm(ctx, x_PH, branch_PH, norm.weight, &norm.bias, config_.norm_eps);
  };
  std::vector<Var> states;
  AddNormResult x;
  const Affine& first_norm = blocks_[0].attention_norm;
  if (input.positions_PH != nullptr) {
    x = add_norm(input.x_PH, *input.positions_PH, first_norm);
  } else {
    x = {.sum_TH = input.x_PH,
         .normed_TH =
             LayerNorm(ctx, input.x_PH, first_norm.weight, &first_norm.bias, config_.norm_eps)};
  }
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    const Block& block = blocks_[layer];
    x = add_norm(x.sum_TH, Attention(ctx, block, x.normed_TH, input), block.mlp_norm);
    const Var inner =
        Gelu(ctx, Linear(ctx, x.normed_TH, block.fc1.weight, &block.fc1.bias), config_.gelu);
    const Var mlp_PH = Linear(ctx, inner, block.fc2.weight, &block.fc2.bias);
    if (layer + 1 < blocks_.size()) {
      x = add_norm(x.sum_TH, mlp_PH, blocks_[layer + 1].attention_norm);
    } else {
      x.sum_TH = Add(ctx, x.sum_TH, mlp_PH);
    }
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
