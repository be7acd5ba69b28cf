#include "backbone/decoder.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "parallel/ops/rows.h"
#include "parallel/ops/shared_attention.h"
#include "runtime/ops/copy.h"
#include "runtime/ops/ops.h"

namespace omni::backbone {

using parallel::Bias;
using parallel::Cut;
using parallel::Matrix;
using parallel::ParameterSpec;
using parallel::Scale;
using parallel::SequenceContext;
using parallel::Stem;
using parallel::TokenPack;

namespace {

DecoderPart Resolved(DecoderPart part, const DecoderConfig& config) {
  if (part.last_layer < 0) part.last_layer = config.layers;
  OMNI_CHECK(0 <= part.first_layer && part.first_layer < part.last_layer);
  OMNI_CHECK_LE(part.last_layer, config.layers);
  return part;
}

}  // namespace

Decoder::Decoder(const DecoderConfig& config, const DecoderPart& part)
    : config_(config),
      part_(Resolved(part, config)),
      layers_(part_.last_layer - part_.first_layer) {
  Declare();
}

void Decoder::Declare() {
  const parallel::InitConfig& init = config_.init;
  const int64_t hidden = config_.hidden;
  const int64_t q_size = config_.q_size(), kv_size = config_.kv_size();
  // Beside each parameter: how it is cut where there are several tensor ranks. Norms are whole.
  if (part_.embeds || (part_.has_head && config_.tied_embeddings)) {
    list_.Add(Cut(Stem("decoder.embedding.weight", {config_.vocab, hidden}, init.embedding_std), 0,
                  {config_.vocab}),
              &embedding_);
  }
  for (int32_t i = part_.first_layer; i < part_.last_layer; ++i) {
    Layer& layer = layers_[i - part_.first_layer];
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
  if (!part_.has_head) return;
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
  for (int32_t i = 0; i < part_.first_layer; ++i) row += config_.moe.IsMoe(i);
  for (const Layer& layer : layers_) {
    if (layer.moe == nullptr) continue;
    layer.moe->BindSelectionBias(
        bias_LE.empty() ? TensorView{} : bias_LE.Rows(row, 1).Reshape({config_.moe.experts}));
    ++row;
  }
}

Var Decoder::Embed(ExecContext& ctx, const SequenceContext& sequence) const {
  const parallel::Group& tensor = sequence.groups().tensor;
  return parallel::VocabEmbedding(ctx, sequence.TensorIds(), embedding_, Vocabulary(tensor), tensor,
                                  sequence.tensor_counts());
}

parallel::VocabRange Decoder::Vocabulary(const parallel::Group& tensor) const {
  return {.begin = int64_t{config_.vocab} * tensor.rank() / tensor.size(), .total = config_.vocab};
}

namespace {

// The new tokens' keys and values go behind those that are there.
void Keep(ExecContext& ctx, const TensorView& k_TKD, const TensorView& v_TKD,
          const KvCache::Layer& layer, int64_t length) {
  for (const auto& [from, to] : {std::pair{k_TKD, layer.k_CKD}, {v_TKD, layer.v_CKD}}) {
    CopyTo(ctx, from, to.Rows(length, from.size(0)));
  }
}

}  // namespace

Var Decoder::Attention(ExecContext& ctx, int32_t index, const Var& normed_TH,
                       const SequenceContext& sequence, const RopeTable& rope,
                       KvCache* cache) const {
  const Layer& layer = layers_[index];
  const parallel::DecoderGroups& groups = sequence.groups();
  const Var gathered_TH =
      parallel::AllGatherRows(ctx, normed_TH, groups.tensor, sequence.tensor_counts());
  const int64_t num_rows = gathered_TH.value.size(0);
  // This tensor rank's heads; of few keys and values, a copy of one.
  const int64_t heads = config_.heads / groups.tensor.size();
  const int64_t kv_heads = std::max(1, config_.kv_heads / groups.tensor.size());
  const int64_t q_size = heads * config_.head_dim, kv_size = kv_heads * config_.head_dim;
  const Var qkv = Linear(ctx, gathered_TH, layer.qkv.weight, layer.qkv.bias_or_null());
  const std::vector<Var> parts = SplitColumns(ctx, qkv, {q_size, kv_size, kv_size});
  Var q_TND = Reshape(ctx, parts[0], {num_rows, heads, config_.head_dim});
  Var k_TKD = Reshape(ctx, parts[1], {num_rows, kv_heads, config_.head_dim});
  const Var v_TKD = Reshape(ctx, parts[2], {num_rows, kv_heads, config_.head_dim});
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
    const auto mix = [&sequence](ExecContext& inner, absl::Span<const Var> in) {
      return std::vector<Var>{parallel::SharedAttention(
          inner, in[0], in[1], in[2], sequence.shards(),
          {.ring = sequence.groups().ring, .ulysses = sequence.groups().ulysses},
          {.causal = true})};
    };
    const Var inputs[] = {q_TND, k_TKD, v_TKD};
    mixed_TND = sequence.recomputes_parts()
                    ? Recompute(ctx, inputs, /*trains_weights=*/false, mix)[0]
                    : mix(ctx, inputs)[0];
  } else {
    const KvCache::Layer& kept = cache->layer(index);
    mixed_TND.value = CachedAttention(ctx, q_TND.value, kept.k_CKD.Rows(0, length + num_rows),
                                      kept.v_CKD.Rows(0, length + num_rows));
  }
  const Var partial_TH = Linear(ctx, Reshape(ctx, mixed_TND, {num_rows, q_size}), layer.output);
  return parallel::ReduceScatterRows(ctx, partial_TH, groups.tensor, sequence.tensor_counts());
}

StageBoundary Decoder::Run(ExecContext& ctx, const StageBoundary& in,
                           const SequenceContext& sequence, RoutingRecord* record,
                           KvCache* cache) const {
  const TokenPack& pack = sequence.pack();
  const int64_t num_axes = static_cast<int64_t>(config_.rope.sections.size());
  OMNI_CHECK_EQ(in.hidden_TH.value.size(0), sequence.num_rows());
  OMNI_CHECK_EQ(static_cast<int64_t>(pack.positions.size()), 3 * pack.num_tokens());
  OMNI_CHECK_EQ(int64_t{pack.cu_seqlens.back()}, pack.num_tokens());
  if (cache != nullptr) {
    OMNI_CHECK(ctx.tape == nullptr);
    OMNI_CHECK_EQ(pack.cu_seqlens.size(), 2u);
    OMNI_CHECK_LE(cache->length() + pack.num_tokens(), cache->capacity());
  }
  const RopeTable rope =
      MakeRopeTable(ctx, sequence.TensorPositions(num_axes),
                    static_cast<int64_t>(sequence.tensor_tokens().size()), config_.rope, dtype());

  StageBoundary out{.hidden_TH = in.hidden_TH};
  Var normed_TH = RmsNorm(ctx, in.hidden_TH, layers_[0].input_norm, config_.norm_eps);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    const auto index = static_cast<int32_t>(i);
    const Var attention_TH = Attention(ctx, index, normed_TH, sequence, rope, cache);
    const AddNormResult middle =
        AddRmsNorm(ctx, out.hidden_TH, attention_TH, layer.mlp_norm, config_.norm_eps);
    Var mlp_TH = layer.feed_forward->Forward(ctx, middle.normed_TH, sequence, record);
    for (const DeepstackRows& added : in.deepstack) {
      if (added.layer != part_.first_layer + index) continue;
      mlp_TH = AddRows(ctx, mlp_TH, added.rows_RH, added.token_rows_R);
    }
    if (i + 1 == layers_.size() && !part_.has_head) {
      out.hidden_TH = Add(ctx, middle.sum_TH, mlp_TH);
      break;
    }
    const Weight& next_norm = i + 1 < layers_.size() ? layers_[i + 1].input_norm : norm_;
    const AddNormResult end = AddRmsNorm(ctx, middle.sum_TH, mlp_TH, next_norm, config_.norm_eps);
    out.hidden_TH = end.sum_TH;
    normed_TH = end.normed_TH;
  }
  if (cache != nullptr) cache->Advance(pack.num_tokens());
  if (part_.has_head) return {.hidden_TH = normed_TH};
  for (const DeepstackRows& rows : in.deepstack) {
    if (rows.layer >= part_.last_layer) out.deepstack.push_back(rows);
  }
  return out;
}

CrossEntropyResult Decoder::Loss(ExecContext& ctx, const StageBoundary& in,
                                 const SequenceContext& sequence, double scale) const {
  const parallel::Group& tensor = sequence.groups().tensor;
  return parallel::VocabCrossEntropy(ctx, in.hidden_TH, head(), Vocabulary(tensor),
                                     sequence.TensorTargets(), scale, tensor,
                                     sequence.tensor_counts());
}

TensorView Decoder::Logits(ExecContext& ctx, const StageBoundary& in) const {
  return Linear(ctx, {.value = in.hidden_TH.value}, {.value = head().value}).value;
}

FlopCount Decoder::Flops(const SequenceContext& sequence, bool input_wants_grad) const {
  FlopCounter counter(input_wants_grad);
  const parallel::DecoderGroups& groups = sequence.groups();
  const auto num_rows = static_cast<int64_t>(sequence.tensor_tokens().size());
  // Ring and Ulysses ranks share them alike.
  const int64_t pairs = FlopCounter::Pairs(sequence.pack().cu_seqlens, /*causal=*/true) /
                        (groups.ring.size() * groups.ulysses.size());
  counter.Vector(embedding_);
  for (const Layer& layer : layers_) {
    counter.Vector(layer.input_norm);
    counter.Linear(num_rows, layer.qkv.weight);
    counter.Attention(pairs, config_.heads / groups.tensor.size(), config_.head_dim);
    counter.Linear(num_rows, layer.output);
    counter.Vector(layer.mlp_norm);
    layer.feed_forward->CountFlops(sequence, &counter);
  }
  if (!part_.has_head) return counter.count();
  counter.Vector(norm_);
  int64_t num_targets = 0;
  for (const int32_t token : sequence.tensor_tokens()) {
    num_targets += sequence.pack().targets[token] >= 0;
  }
  counter.Linear(num_targets, head());
  return counter.count();
}

}  // namespace omni::backbone
