#include "backbone/decoder.h"

#include "absl/strings/str_cat.h"
#include "runtime/device/args/elementwise.h"
#include "runtime/ops/ops.h"

namespace omni::backbone {

using parallel::Bias;
using parallel::Cut;
using parallel::Matrix;
using parallel::ParameterSpec;
using parallel::Scale;
using parallel::Stem;
using parallel::TokenPack;

Decoder::Decoder(const DecoderConfig& config) : config_(config), layers_(config.layers) {
  Declare();
}

void Decoder::Declare() {
  const parallel::InitConfig& init = config_.init;
  const int64_t hidden = config_.hidden;
  const int64_t q_size = config_.q_size(), kv_size = config_.kv_size();
  // Beside each parameter: how it is cut where there are several tensor ranks. Norms are whole.
  list_.Add(Cut(Stem("decoder.embedding.weight", {config_.vocab, hidden}, init.embedding_std), 0,
                {config_.vocab}),
            &embedding_);
  for (int32_t i = 0; i < config_.layers; ++i) {
    Layer& layer = layers_[i];
    const std::string prefix = absl::StrCat("decoder.layers.", i, ".");
    list_.Add(Scale(prefix + "input_norm.weight", hidden), &layer.input_norm);
    ParameterSpec qkv =
        Matrix(prefix + "attention.qkv.weight", q_size + 2 * kv_size, hidden, init.Std(hidden));
    qkv.num_stacked = 3;
    qkv.stack_rows = {q_size, kv_size, kv_size};
    const std::vector<int64_t> qkv_heads = {config_.heads, config_.kv_heads, config_.kv_heads};
    list_.Add(Cut(std::move(qkv), 0, qkv_heads), &layer.qkv.weight);
    if (config_.qkv_bias) {
      ParameterSpec bias = Bias(prefix + "attention.qkv.bias", q_size + 2 * kv_size);
      bias.num_stacked = 3;
      bias.stack_rows = {q_size, kv_size, kv_size};
      list_.Add(Cut(std::move(bias), 0, qkv_heads), &layer.qkv.bias);
    }
    if (config_.qk_norm) {
      list_.Add(Scale(prefix + "attention.q_norm.weight", config_.head_dim), &layer.q_norm);
      list_.Add(Scale(prefix + "attention.k_norm.weight", config_.head_dim), &layer.k_norm);
    }
    list_.Add(Cut(Matrix(prefix + "attention.output.weight", hidden, q_size,
                         init.ResidualStd(q_size, config_.layers)),
                  1, {config_.heads}),
              &layer.output);
    list_.Add(Scale(prefix + "mlp_norm.weight", hidden), &layer.mlp_norm);
    if (config_.moe.IsMoe(i)) {
      auto moe = std::make_unique<Moe>(config_, prefix + "moe.", &list_);
      layer.moe = moe.get();
      layer.feed_forward = std::move(moe);
    } else {
      layer.feed_forward =
          std::make_unique<SwiGluMlp>(config_, config_.ffn, prefix + "mlp.", &list_);
    }
  }
  list_.Add(Scale("decoder.norm.weight", hidden), &norm_);
  if (!config_.tied_embeddings) {
    list_.Add(Cut(Stem("decoder.head.weight", {config_.vocab, hidden},
                       init.Std(hidden) * init.head_scale),
                  0, {config_.vocab}),
              &head_);
  }
}

void Decoder::BindSelectionBias(const TensorView& bias_LE) {
  if (!bias_LE.empty()) {
    OMNI_CHECK_EQ(bias_LE.size(0), int64_t{config_.num_moe_layers()});
    OMNI_CHECK_EQ(bias_LE.size(1), int64_t{config_.moe.experts});
  }
  int64_t row = 0;
  for (const Layer& layer : layers_) {
    if (layer.moe == nullptr) continue;
    layer.moe->BindSelectionBias(
        bias_LE.empty() ? TensorView{} : bias_LE.Rows(row, 1).Reshape({config_.moe.experts}));
    ++row;
  }
}

Var Decoder::Embed(ExecContext& ctx, absl::Span<const int32_t> token_ids) const {
  const TensorView ids_T =
      UploadNew<int32_t>(ctx, token_ids, {static_cast<int64_t>(token_ids.size())});
  return Embedding(ctx, ids_T, embedding_);
}

namespace {

// The new tokens' keys and values go behind those that are there.
void Keep(ExecContext& ctx, const TensorView& k_TKD, const TensorView& v_TKD,
          const KvCache::Layer& layer, int64_t length) {
  for (const auto& [from, to] : {std::pair{k_TKD, layer.k_CKD}, {v_TKD, layer.v_CKD}}) {
    Launch(ctx, OpId::kCopyCast, from.dtype,
           CopyCastArgs{.in = from, .out = to.Rows(length, from.size(0))});
  }
}

}  // namespace

Var Decoder::Attention(ExecContext& ctx, int32_t index, const Var& normed_TH,
                       absl::Span<const int32_t> cu_seqlens, const RopeTable& rope,
                       KvCache* cache) const {
  const Layer& layer = layers_[index];
  const int64_t num_tokens = normed_TH.value.size(0);
  const int64_t q_size = config_.q_size(), kv_size = config_.kv_size();
  const Var qkv = Linear(ctx, normed_TH, layer.qkv.weight, layer.qkv.bias_or_null());
  const std::vector<Var> parts = SplitColumns(ctx, qkv, {q_size, kv_size, kv_size});
  Var q_TND = Reshape(ctx, parts[0], {num_tokens, config_.heads, config_.head_dim});
  Var k_TKD = Reshape(ctx, parts[1], {num_tokens, config_.kv_heads, config_.head_dim});
  const Var v_TKD = Reshape(ctx, parts[2], {num_tokens, config_.kv_heads, config_.head_dim});
  if (config_.qk_norm) {
    q_TND = RmsNorm(ctx, q_TND, layer.q_norm, config_.norm_eps);
    k_TKD = RmsNorm(ctx, k_TKD, layer.k_norm, config_.norm_eps);
  }
  q_TND = Rope(ctx, q_TND, rope.cos_TR, rope.sin_TR);
  k_TKD = Rope(ctx, k_TKD, rope.cos_TR, rope.sin_TR);
  const int64_t length = cache == nullptr ? 0 : cache->length();
  if (cache != nullptr) Keep(ctx, k_TKD.value, v_TKD.value, cache->layer(index), length);
  Var mixed_TND;
  if (length == 0) {
    mixed_TND = VarlenAttention(ctx, q_TND, k_TKD, v_TKD, cu_seqlens, {.causal = true});
  } else {
    const KvCache::Layer& kept = cache->layer(index);
    mixed_TND.value = CachedAttention(ctx, q_TND.value, kept.k_CKD.Rows(0, length + num_tokens),
                                      kept.v_CKD.Rows(0, length + num_tokens));
  }
  return Linear(ctx, Reshape(ctx, mixed_TND, {num_tokens, q_size}), layer.output);
}

StageBoundary Decoder::Run(ExecContext& ctx, const StageBoundary& in, const TokenPack& pack,
                           RoutingRecord* record, KvCache* cache) const {
  const int64_t num_tokens = pack.num_tokens();
  const int64_t num_axes = static_cast<int64_t>(config_.rope.sections.size());
  OMNI_CHECK_EQ(in.hidden_TH.value.size(0), num_tokens);
  OMNI_CHECK_EQ(static_cast<int64_t>(pack.positions.size()), 3 * num_tokens);
  OMNI_CHECK_EQ(int64_t{pack.cu_seqlens.back()}, num_tokens);
  if (cache != nullptr) {
    OMNI_CHECK(ctx.tape == nullptr);
    OMNI_CHECK_EQ(pack.cu_seqlens.size(), 2u);
    OMNI_CHECK_LE(cache->length() + num_tokens, cache->capacity());
  }
  const RopeTable rope =
      MakeRopeTable(ctx, absl::MakeConstSpan(pack.positions).first(num_axes * num_tokens),
                    num_tokens, config_.rope, dtype());

  Var x_TH = in.hidden_TH;
  Var normed_TH = RmsNorm(ctx, x_TH, layers_[0].input_norm, config_.norm_eps);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    const Var attention_TH =
        Attention(ctx, static_cast<int32_t>(i), normed_TH, pack.cu_seqlens, rope, cache);
    const AddNormResult middle =
        AddRmsNorm(ctx, x_TH, attention_TH, layer.mlp_norm, config_.norm_eps);
    Var mlp_TH = layer.feed_forward->Forward(ctx, middle.normed_TH, record);
    for (const DeepstackRows& added : in.deepstack) {
      if (added.layer != static_cast<int32_t>(i)) continue;
      mlp_TH = AddRows(ctx, mlp_TH, added.rows_RH, added.token_rows_R);
    }
    const Weight& next_norm = i + 1 < layers_.size() ? layers_[i + 1].input_norm : norm_;
    const AddNormResult end = AddRmsNorm(ctx, middle.sum_TH, mlp_TH, next_norm, config_.norm_eps);
    x_TH = end.sum_TH;
    normed_TH = end.normed_TH;
  }
  if (cache != nullptr) cache->Advance(num_tokens);
  return {.hidden_TH = normed_TH};
}

CrossEntropyResult Decoder::Loss(ExecContext& ctx, const StageBoundary& in,
                                 absl::Span<const int32_t> targets, double scale) const {
  const TensorView targets_T =
      UploadNew<int32_t>(ctx, targets, {static_cast<int64_t>(targets.size())});
  return LinearCrossEntropy(ctx, in.hidden_TH, head(), targets_T, scale);
}

TensorView Decoder::Logits(ExecContext& ctx, const StageBoundary& in) const {
  return Linear(ctx, {.value = in.hidden_TH.value}, {.value = head().value}).value;
}

FlopCount Decoder::Flops(const TokenPack& pack, bool input_wants_grad) const {
  FlopCounter counter(input_wants_grad);
  const int64_t num_tokens = pack.num_tokens();
  counter.Vector(embedding_);
  for (const Layer& layer : layers_) {
    counter.Vector(layer.input_norm);
    counter.Linear(num_tokens, layer.qkv.weight);
    counter.Attention(pack.cu_seqlens, config_.heads, config_.head_dim, /*causal=*/true);
    counter.Linear(num_tokens, layer.output);
    counter.Vector(layer.mlp_norm);
    layer.feed_forward->CountFlops(num_tokens, &counter);
  }
  counter.Vector(norm_);
  int64_t num_targets = 0;
  for (const int32_t target : pack.targets) num_targets += target >= 0;
  counter.Linear(num_targets, head());
  return counter.count();
}

}  // namespace omni::backbone
