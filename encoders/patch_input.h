// What the vision towers share at their ends: pixels in, rows of merged cells out.
#pragma once

#include <vector>

#include "encoders/encoder.h"
#include "encoders/vision_rows.h"
#include "runtime/ops/rope.h"

namespace omni::encoders {

// How pixels become the rows a stem reads.
struct PatchInput {
  int32_t channels = 3;
  int32_t patch = 14;          // pixels
  int32_t temporal_patch = 2;  // frames
  int32_t merge = 2;           // patches per side of a cell, which is one output row
  std::vector<double> mean = {0.48145466, 0.4578275, 0.40821073};  // of pixels in 0..1
  std::vector<double> std = {0.26862954, 0.26130258, 0.27577711};

  int32_t patch_elements() const { return channels * temporal_patch * patch * patch; }
  InputGeometry geometry() const {
    return {.patch = patch,
            .temporal_patch = temporal_patch,
            .merge = merge,
            .unit = {.input_rows = int64_t{merge} * merge, .output_rows = 1},
            .mean = mean,
            .std = std};
  }
  // Output rows of an item: its cells.
  int64_t NumCells(const parallel::MediaItem& item) const {
    return int64_t{item.t} * (item.h / merge) * (item.w / merge);
  }
};
// Keys channels, patch, temporal_patch, merge, mean and std of a tower's section.
void ReadPatchInput(ConfigReader& reader, PatchInput* out);

// After Finish: mean and std have a value for each channel, hidden is a multiple of heads, and
// 2-D RoPE can turn the heads (their size is a multiple of 4).
absl::Status CheckVisionTower(const ConfigReader& reader, const PatchInput& input, int32_t hidden,
                              int32_t heads);

// The pack's patches in the order of `rows`, normalised: [P, patch_elements] of `dtype`.
// CHECK-fails if the pack is of another geometry.
TensorView UploadPatches(ExecContext& ctx, const parallel::MediaPack& pack, const PatchInput& input,
                         const VisionRows& rows, DType dtype);

// cos and sin of each patch's row and column, for heads of this size.
RopeTable MakePatchRope(ExecContext& ctx, const VisionRows& rows, int32_t head_dim, double theta,
                        DType dtype);

}  // namespace omni::encoders
