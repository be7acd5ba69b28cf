// The trunk of Whisper-like audio towers: two convolutions over log-mel frames (the second halves
// them), positions, pre-norm blocks whose k has no bias, the mean of pairs of steps, a norm and a
// linear map to the decoder's width. Whose frames go together and what positions they get is said
// by the tower around it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "encoders/encoder.h"
#include "encoders/layer_norm_blocks.h"

namespace omni::encoders {

struct WhisperTowerConfig {
  int32_t mel_bands = 128;
  int32_t hidden = 1280;
  int32_t layers = 32;
  int32_t heads = 20;
  int32_t ffn = 5120;
  float norm_eps = 1e-5f;
  parallel::InitConfig init;
};
// The keys above of a tower's section.
void ReadWhisperTower(ConfigReader& reader, WhisperTowerConfig* out);
// After Finish: hidden is even and a multiple of heads.
absl::Status CheckWhisperTower(const ConfigReader& reader, const WhisperTowerConfig& config);

class WhisperTower {
 public:
  // Segments after the two convolutions: ceil(frames / 2) each.
  static std::vector<int32_t> Steps(absl::Span<const int32_t> cu_frames);
  static constexpr int32_t kPool = 2;  // steps per output row

  WhisperTower(const WhisperTowerConfig& config, int32_t output_hidden);

  // "<name>." + conv1, conv2, layers.<i>, post_norm, projector.
  void Declare(const std::string& name, parallel::ParameterList* list);

  struct Layout {
    std::vector<int32_t> cu_frames;                       // what each convolution sees by itself
    std::optional<std::vector<int32_t>> kept_steps = {};  // steps that go on; absent: all
    std::vector<int32_t> cu_steps;                        // of those: one attention segment each
    std::vector<int32_t> cu_items;                        // of those: pairs are pooled within each
  };
  // frames [F, mel_bands] in fp32 on the host, positions one row per kept step -> [R,
  // output_hidden]. `attention`: among the kept steps; with those of other ranks, if it says so.
  Var Forward(ExecContext& ctx, const parallel::MediaPack& pack, const Layout& layout,
              const Var& positions_SH, const SegmentAttention& attention,
              parallel::Recompute recompute) const;
  void CountFlops(const Layout& layout, FlopCounter* counter) const;

  DType dtype() const { return conv1_.weight.value.dtype; }

 private:
  const WhisperTowerConfig config_;
  const int32_t output_hidden_;
  parallel::Affine conv1_, conv2_, post_norm_, projector_;
  LayerNormBlocks blocks_;
};

// Host values in the compute dtype, on the device: [rows, columns].
TensorView UploadAs(ExecContext& ctx, DType dtype, absl::Span<const float> host, int64_t rows,
                    int64_t columns);
TensorView UploadAs(ExecContext& ctx, DType dtype, absl::Span<const double> host, int64_t rows,
                    int64_t columns);

}  // namespace omni::encoders
