// The language model: pre-norm blocks of grouped-query attention with M-RoPE and a SwiGLU MLP,
// as in Qwen2.5 (bias on q, k, v) and Qwen3 (norm on q and k instead), or a mixture of experts
// (backbone/moe.h) in its place. Embeddings in, hidden states out; whoever made the embeddings
// (text, media rows) is not known here.
//
//   decoder: {hidden: 128, layers: 4, heads: 4, kv_heads: 2, head_dim: 32, ffn: 352, vocab: 512,
//             norm_eps: 1e-6, qkv_bias: true, qk_norm: false, tied_embeddings: false,
//             rope: {theta: 10000, layout: chunked, sections: [4, 6, 6],
//                    scaling: {kind: llama3, factor: 8, low_frequency_factor: 1,
//                              high_frequency_factor: 4, original_positions: 8192}}}
#pragma once

#include <memory>
#include <vector>

#include "backbone/feed_forward.h"
#include "backbone/kv_cache.h"
#include "backbone/moe.h"
#include "parallel/ops/vocab.h"
#include "parallel/pack.h"
#include "parallel/parallel_config.h"
#include "parallel/parameter_list.h"
#include "parallel/sequence_context.h"
#include "runtime/base/config.h"
#include "runtime/ops/cross_entropy.h"
#include "runtime/ops/flops.h"
#include "runtime/ops/rope.h"
#include "runtime/ops/tape.h"

namespace omni::backbone {

struct DecoderConfig {
  int32_t hidden = 0;
  int32_t layers = 0;
  int32_t heads = 0;
  int32_t kv_heads = 0;  // absent: as many as heads
  int32_t head_dim = 0;  // absent: hidden / heads
  int32_t ffn = 0;
  int32_t vocab = 0;
  float norm_eps = 1e-6f;
  bool qkv_bias = true;
  bool qk_norm = false;  // RMSNorm over each head's q and k, before RoPE
  bool tied_embeddings = false;
  RopeOptions rope = {.theta = 1e6};  // sections absent: {head_dim / 2}, positions of axis 0
  MoeConfig moe;                      // in its layers in place of the MLP
  parallel::InitConfig init;

  int32_t num_moe_layers() const;
  int32_t q_size() const { return heads * head_dim; }
  int32_t kv_size() const { return kv_heads * head_dim; }
  parallel::DecoderShape shape() const;
};
// InvalidArgument, with file, line and key, for unknown keys and contradictions.
absl::Status Read(const ConfigNode& node, DecoderConfig* out);

// Rows added to the hidden states of some tokens after one layer (an encoder's DeepStack features).
struct DeepstackRows {
  int32_t layer = 0;
  Var rows_RH;
  TensorView token_rows_R;  // int32 on the device; among this rank's rows
};

// What crosses a stage boundary: named, so that more can cross later. Between chunks `hidden` is
// the residual stream; the last chunk puts out its norm.
struct StageBoundary {
  Var hidden_TH;
  std::vector<DeepstackRows> deepstack = {};  // for the layers to come
};

// Which part of a decoder: layers [first, last), before them the embedding, after them norm and
// head.
struct DecoderPart {
  int32_t first_layer = 0;
  int32_t last_layer = -1;  // -1: the decoder's last
  bool embeds = true;
  bool has_head = true;
};

// A decoder, or the chunk of one that a rank of a pipeline holds. Reads as if for one device: where
// ranks share its sequences the SequenceContext says so, and hidden states are this rank's rows.
class Decoder {
 public:
  explicit Decoder(const DecoderConfig& config, const DecoderPart& part = {});

  const DecoderConfig& config() const { return config_; }
  const DecoderPart& part() const { return part_; }  // last_layer is set
  // Paths start with "decoder."; with tied embeddings there is no "decoder.head.weight", and who
  // has the head has the embedding. Global shapes: what is bound may be cut (parallel/placement.h).
  std::vector<parallel::ParameterSpec> Parameters() const { return list_.specs(); }
  void Bind(const parallel::ParameterStore& store) { list_.Bind(store); }
  // bias_LE [MoE layers, E], fp32 (fp64 in fp64); empty: none.
  void BindSelectionBias(const TensorView& bias_LE);
  DType dtype() const { return layers_.front().input_norm.value.dtype; }

  // Of this rank's rows: [T, H].
  Var Embed(ExecContext& ctx, const parallel::SequenceContext& sequence) const;

  // The blocks, with the deepstack rows added on the way, and the final norm; what is for later
  // layers passes through. The pack gives segments (causal, none sees another) and positions; T is
  // the context's number of rows. MoE layers append to `record`, unless it is null.
  StageBoundary Forward(ExecContext& ctx, const StageBoundary& in,
                        const parallel::SequenceContext& sequence,
                        RoutingRecord* record = nullptr) const {
    return Run(ctx, in, sequence, record, nullptr);
  }
  // The same for the next tokens of one sequence, whose earlier ones are in `cache`: the pack is
  // one segment with its positions, and its keys and values are added. Without a tape. CHECK-fails
  // beyond the cache's capacity.
  StageBoundary Continue(ExecContext& ctx, const StageBoundary& in, const parallel::TokenPack& pack,
                         KvCache* cache) const {
    return Run(ctx, in, parallel::SequenceContext(pack), nullptr, cache);
  }
  KvCache NewCache(TensorArena& arena, int64_t capacity) const {
    return {arena, dtype(), config_.layers, capacity, config_.kv_heads, config_.head_dim};
  }

  // Against the pack's targets, of this rank's rows. `scale`: see LinearCrossEntropy.
  CrossEntropyResult Loss(ExecContext& ctx, const StageBoundary& in,
                          const parallel::SequenceContext& sequence, double scale) const;

  // hidden [T, H] -> [T, vocab], not recorded on a tape.
  TensorView Logits(ExecContext& ctx, const StageBoundary& in) const;

  // Of the blocks and the head (rows with a target only), forward and backward, as bound now.
  // `input_wants_grad`: an encoder before it is trained.
  // This rank's share: over the ranks of a stage they add up.
  FlopCount Flops(const parallel::SequenceContext& sequence, bool input_wants_grad) const;

 private:
  struct Layer {
    Weight input_norm, mlp_norm, q_norm, k_norm;
    parallel::Affine qkv;
    Weight output;
    std::unique_ptr<FeedForward> feed_forward;
    Moe* moe = nullptr;  // feed_forward, if it is one
  };
  void Declare();
  StageBoundary Run(ExecContext& ctx, const StageBoundary& in,
                    const parallel::SequenceContext& sequence, RoutingRecord* record,
                    KvCache* cache) const;
  // `cache`: null, or where the layer's keys and values go.
  Var Attention(ExecContext& ctx, int32_t index, const Var& normed_TH,
                const parallel::SequenceContext& sequence, const RopeTable& rope,
                KvCache* cache) const;
  parallel::VocabRange Vocabulary(const parallel::Group& tensor) const;  // what this rank holds
  const Weight& head() const { return config_.tied_embeddings ? embedding_ : head_; }

  const DecoderConfig config_;
  const DecoderPart part_;
  parallel::ParameterList list_;
  Weight embedding_, norm_, head_;
  std::vector<Layer> layers_;  // from part_.first_layer on
};

}  // namespace omni::backbone
