// A third modality for tests, added by following docs/how_to_add_an_encoder.md to the letter: grey
// patches, each of which becomes a row of the decoder by itself.
//
//   patches: {kind: tiny_patches, patch: 3, hidden: 8}
#pragma once

#include "encoders/encoder.h"

namespace omni::testing {

struct TinyPatchesConfig {
  int32_t patch = 3;  // pixels
  int32_t hidden = 8;
  parallel::InitConfig init;
};
// InvalidArgument, with file, line and key, for unknown keys and bad values.
absl::Status Read(const ConfigNode& node, TinyPatchesConfig* out);

// Items are grids of h x w patches of patch^2 bytes.
class TinyPatches : public encoders::Encoder {
 public:
  static absl::StatusOr<std::unique_ptr<encoders::Encoder>> Create(
      const ConfigNode& section, const encoders::EncoderOptions& options);
  TinyPatches(const TinyPatchesConfig& config, const encoders::EncoderOptions& options);

  std::vector<parallel::ParameterSpec> Parameters() const override { return list_.specs(); }
  void Bind(const parallel::ParameterStore& store) override { list_.Bind(store); }
  encoders::InputGeometry geometry() const override {
    return {.patch = config_.patch, .unit = {.input_rows = 1, .output_rows = 1}};
  }
  int64_t NumOutputRows(const parallel::MediaItem& item) const override {
    return int64_t{item.h} * item.w;
  }
  encoders::EncoderOutput Encode(ExecContext& ctx, const parallel::MediaPack& pack,
                                 const encoders::EncodeOptions& options) const override;
  FlopCount Flops(absl::Span<const parallel::MediaItem> items) const override;

 private:
  const TinyPatchesConfig config_;
  const int32_t output_hidden_;
  parallel::ParameterList list_;
  parallel::Affine patch_embed_, projector_;
};

void RegisterTinyPatches(encoders::EncoderRegistry& registry);

}  // namespace omni::testing
