// Where encoders and decoder meet: the model of a recipe, as one device sees it; or what a rank of
// a pipeline holds of it, all encoders and some chunks of the decoder, which trainer/pipeline runs.
//
//   media --encoders--> rows --ScatterRows--> token embeddings --decoder--> loss
//                       deepstack features --AddRows--> hidden states after layers 0, 1, ...
//
// The parts know nothing of each other; the loader's packs say which encoder row stands at
// which token.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "backbone/decoder.h"
#include "encoders/encoder.h"
#include "parallel/lora.h"
#include "parallel/pack.h"
#include "parallel/parameter.h"
#include "parallel/placement.h"

namespace omni::trainer {

struct MicrobatchResult {
  Var loss;  // scalar [1]: scales.loss_token * sum of token losses; no memory if there were no
             // tokens
  TensorView losses_T;                             // [T] unscaled
  TensorView argmax_T;                             // [T] int32, -1 where there is no target
  std::vector<backbone::AuxiliaryLoss> auxiliary;  // minimised as well
  std::vector<TensorView> expert_offsets;          // see backbone::RoutingRecord
};

struct MicrobatchFlops {
  FlopCount encoders;
  FlopCount decoder;

  int64_t total() const { return encoders.total() + decoder.total(); }
};

// One encoder's input by its name in the recipe; absent means none.
using MediaPacks = std::map<std::string, parallel::MediaPack>;

class MultimodalModel {
 public:
  // `section`: the recipe's `model`, with `decoder`, `encoders` (a map name -> section, may be
  // absent) and `init`. InvalidArgument with file, line and key.
  // `parts`: the decoder's chunks this rank holds, ascending; by default all of it in one.
  static absl::StatusOr<std::unique_ptr<MultimodalModel>> Create(
      const ConfigNode& section, const encoders::EncoderRegistry& registry,
      const std::vector<backbone::DecoderPart>& parts = {{}});

  // All parameters held here, in an order that depends on recipe and parts alone; one that two
  // chunks share (a tied embedding) once. Global shapes.
  std::vector<parallel::ParameterSpec> Parameters() const;
  // Without those of adapters (model.lora).
  std::vector<parallel::ParameterSpec> BaseParameters() const;
  // Names under which a recipe can freeze or scale parts: "decoder", "decoder.embedding",
  // "decoder.head", and per encoder its name and its projector ("vision", "vision.merger"); with
  // model.lora also "lora.decoder", "lora.vision" and so on, the adapters there.
  const std::vector<std::string>& Modules() const { return modules_; }
  // The longest of Modules() that `path` lies in.
  std::string ModuleOf(const std::string& path) const;

  // May be called again when weights move or other parts are frozen.
  void Bind(const parallel::ParameterStore& store);
  void BindSelectionBias(const TensorView& bias_LE);
  // Which rows of the weights bound from now on adapters belong to, where weights are cut.
  void CutLora(const std::vector<parallel::Placement>& placements);

  // From here to Flops: for a whole decoder.
  // `scales`: of the global batch. Packs with no tokens or no items are fine.
  MicrobatchResult ForwardMicrobatch(ExecContext& ctx, const parallel::TokenPack& tokens,
                                     const MediaPacks& media,
                                     const parallel::LossScales& scales) const;
  // [T, vocab] of every token, in the dtype of the weights; not recorded on a tape. For looking at
  // a model: training never holds them all.
  TensorView Logits(ExecContext& ctx, const parallel::TokenPack& tokens,
                    const MediaPacks& media) const;
  // [vocab] of the pack's last token, which continues the sequence in `cache` (decoder().NewCache).
  TensorView NextLogits(ExecContext& ctx, const parallel::TokenPack& tokens,
                        const MediaPacks& media, backbone::KvCache* cache) const;
  // ForwardMicrobatch, recorded on ctx.tape (reset first, and required) and run backwards:
  // gradients accumulate in the bound weights. The result is readable until the tape is used again.
  MicrobatchResult ForwardBackward(ExecContext& ctx, const parallel::TokenPack& tokens,
                                   const MediaPacks& media,
                                   const parallel::LossScales& scales) const;

  // As bound now; what frozen parts spare is not counted.
  MicrobatchFlops Flops(const parallel::TokenPack& tokens, const MediaPacks& media) const;

  const parallel::LoraConfig& lora() const { return lora_; }
  const std::vector<parallel::LoraTarget>& lora_targets() const { return lora_targets_; }
  const backbone::Decoder& decoder() const { return *chunks_.front(); }
  const std::vector<std::unique_ptr<backbone::Decoder>>& chunks() const { return chunks_; }
  // Null if the recipe has no such encoder.
  const encoders::Encoder* encoder(const std::string& name) const;
  const std::vector<std::pair<std::string, std::unique_ptr<encoders::Encoder>>>& encoders() const {
    return encoders_;
  }

 private:
  MultimodalModel() = default;
  std::vector<std::string> FindModules() const;
  std::vector<parallel::ParameterSpec> EncoderParameters() const;
  // The decoder's input: embeddings with the encoders' rows in their places.
  backbone::StageBoundary Embed(ExecContext& ctx, const parallel::SequenceContext& sequence,
                                const MediaPacks& media) const;

  std::vector<std::unique_ptr<backbone::Decoder>> chunks_;
  std::vector<std::pair<std::string, std::unique_ptr<encoders::Encoder>>> encoders_;
  parallel::LoraConfig lora_;
  std::vector<parallel::LoraTarget> lora_targets_;
  std::vector<std::unique_ptr<LoraAdapter>> lora_adapters_;  // as lora_targets_; weights point here
  std::vector<std::string> modules_;
};

}  // namespace omni::trainer
