// What turns media into rows the decoder can read among its tokens.
//
// An encoder owns its tower and its projector, reads its own section of the recipe
// (model.encoders.<name>), and knows nothing of the decoder but how wide its rows must be. A
// new one is a file that implements this interface and a line in registry.cc.
//
// Shape letters: P input rows (patches or frames)   R output rows   H hidden
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/encoder_shards.h"
#include "parallel/pack.h"
#include "parallel/parallel_config.h"
#include "parallel/parameter_list.h"
#include "runtime/base/config.h"
#include "runtime/ops/flops.h"
#include "runtime/ops/tape.h"

namespace omni::encoders {

// What a loader must know to prepare input rows; zeros where it does not apply.
struct InputGeometry {
  int32_t patch = 0;           // vision: side of a patch, pixels
  int32_t temporal_patch = 0;  // vision: frames per patch
  int32_t merge = 0;           // vision: merge x merge patches become one output row
  int32_t mel_bands = 0;       // audio
  int32_t mel_window = 0;   // audio: > 0: a sound stands at the start of this many frames, silent
                            // after it; 0: it ends where it ends
  int32_t mel_context = 0;  // audio: frames past a sound's last that are handed over as well, as
                            // far as the window goes
  // Long samples can be split over ranks at multiples of so many input rows, which make so many
  // output rows, with some rows of their neighbours (parallel/encoder_shards.h); 0: they cannot.
  parallel::SampleUnit unit = {};
  // vision: of pixels in 0..1 by channel; the tower subtracts and divides, loaders hand it bytes
  std::vector<double> mean = {}, std = {};
};

// What an encoder gives the decoder.
struct EncoderOutput {
  Var rows_RH;  // they replace the placeholder tokens' embeddings
  // DeepStack (Meng et al. 2024, arXiv 2406.04334): features of intermediate layers, each as
  // rows_RH; entry i is added to the same tokens' hidden states after decoder layer i.
  std::vector<Var> deepstack_RH;
};

// How a pack is encoded.
struct EncodeOptions {
  // With several ranks in the shard's groups every item of the pack is split over them: items have
  // the geometry of the whole sample, the payload has this rank's rows of each
  // (parallel::ShardPack), and so has the output. All ranks of the group make the same calls with
  // the same items, however few rows they hold, and run the same backward.
  parallel::SampleShard shard = {};
  // kFull: every block keeps its inputs only. kSelective: attention and activations are computed
  // again, products with weights are kept.
  parallel::Recompute recompute = parallel::Recompute::kNone;
};

class Encoder {
 public:
  virtual ~Encoder() = default;

  // Paths start with the encoder's name in the recipe; those of its projector with
  // "<name>.merger." or "<name>.projector.".
  virtual std::vector<parallel::ParameterSpec> Parameters() const = 0;
  // Before the first Encode, and again whenever weights move or a phase freezes other parts
  // (a Weight without grad is frozen).
  virtual void Bind(const parallel::ParameterStore& store) = 0;

  virtual InputGeometry geometry() const = 0;
  virtual int64_t NumOutputRows(const parallel::MediaItem& item) const = 0;

  // Length of EncoderOutput::deepstack_RH, whatever the pack (but see Encode).
  virtual int32_t num_deepstack() const { return 0; }

  // -> [R, decoder hidden], rows in the order of the items, in the dtype of the weights.
  // R may be 0 (no items: NoRows); then nothing is recorded and there are no deepstack features.
  // CHECK-fails if an item's rows contradict its geometry: the loader made them.
  virtual EncoderOutput Encode(ExecContext& ctx, const parallel::MediaPack& pack,
                               const EncodeOptions& options) const = 0;
  EncoderOutput Encode(ExecContext& ctx, const parallel::MediaPack& pack) const {
    return Encode(ctx, pack, EncodeOptions{});
  }
  // Where samples can be split (geometry().unit): the heads that can be dealt over a sequence
  // group. Its ulysses ranks are the largest number that divides both them and the group; 0:
  // attention never leaves a unit, so shards exchange nothing.
  virtual int32_t sequence_heads() const { return 0; }

  // Of Encode and its backward as bound now: frozen parts cost no backward.
  virtual FlopCount Flops(absl::Span<const parallel::MediaItem> items) const = 0;
  // What one sample weighs when samples are dealt out: its forward FLOPs.
  int64_t Cost(const parallel::MediaItem& item) const { return Flops({&item, 1}).forward; }
};

// The output for a pack without items: a view without memory, sizes {0, hidden}.
EncoderOutput NoRows(const ExecContext& ctx, DType dtype, int64_t hidden);

// How encoders are made: from their section of the recipe.
struct EncoderOptions {
  std::string name;           // "vision": prefix of all parameter paths
  int32_t output_hidden = 0;  // the decoder's hidden size
  parallel::InitConfig init;  // the model's, which the section may override
};

class EncoderRegistry {
 public:
  using Factory = absl::StatusOr<std::unique_ptr<Encoder>> (*)(const ConfigNode& section,
                                                               const EncoderOptions& options);
  void Register(const std::string& kind, Factory factory);

  // By the section's `kind`. InvalidArgument with file, line and the nearest valid kind.
  absl::StatusOr<std::unique_ptr<Encoder>> Create(const ConfigNode& section,
                                                  const EncoderOptions& options) const;

 private:
  std::vector<std::pair<std::string, Factory>> factories_;
};

// qwen_vision, qwen3_vision, seed_vision, qwen_audio, qwen2_audio.
void RegisterEncoders(EncoderRegistry& registry);

}  // namespace omni::encoders
