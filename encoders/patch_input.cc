#include "encoders/patch_input.h"

#include <cstring>

#include "runtime/ops/conv.h"

namespace omni::encoders {

void ReadPatchInput(ConfigReader& reader, PatchInput* out) {
  reader.Read("channels", &out->channels, AtLeast(1));
  reader.Read("patch", &out->patch, AtLeast(1));
  reader.Read("temporal_patch", &out->temporal_patch, AtLeast(1));
  reader.Read("merge", &out->merge, AtLeast(1));
  reader.Read("mean", &out->mean);
  reader.Read("std", &out->std, Positive());
}

absl::Status CheckVisionTower(const ConfigReader& reader, const PatchInput& input, int32_t hidden,
                              int32_t heads) {
  if (hidden % heads != 0) {
    return reader.Error("heads",
                        absl::StrCat("hidden ", hidden, " is not a multiple of ", heads, " heads"));
  }
  if (hidden / heads % 4 != 0) {
    return reader.Error("heads", absl::StrCat("head size ", hidden / heads,
                                              " is not a multiple of 4, as 2-D RoPE needs"));
  }
  for (const auto& [key, values] : {std::pair{"mean", &input.mean}, {"std", &input.std}}) {
    if (static_cast<int32_t>(values->size()) != input.channels) {
      return reader.Error(
          key, absl::StrCat(values->size(), " values for ", input.channels, " channels"));
    }
  }
  return absl::OkStatus();
}

TensorView UploadPatches(ExecContext& ctx, const parallel::MediaPack& pack, const PatchInput& input,
                         const VisionRows& rows, DType dtype) {
  OMNI_CHECK_EQ(static_cast<int>(pack.dtype), static_cast<int>(DType::kUInt8));
  OMNI_CHECK_EQ(pack.row_elements, input.patch_elements());
  const int64_t num_patches = pack.num_rows();
  OMNI_CHECK_EQ(num_patches, rows.num_patches);
  const uint8_t* source = pack.payload.data();
  std::vector<uint8_t> reordered;
  if (!rows.cells.empty()) {
    const int64_t cell_bytes = int64_t{input.patch_elements()} * input.merge * input.merge;
    reordered.resize(pack.payload.size());
    for (size_t place = 0; place < rows.cells.size(); ++place) {
      std::memcpy(reordered.data() + place * cell_bytes, source + rows.cells[place] * cell_bytes,
                  cell_bytes);
    }
    source = reordered.data();
  }
  const TensorView patches_PI = ctx.New(DType::kUInt8, {num_patches, input.patch_elements()});
  Upload(ctx, source, patches_PI.num_bytes(), patches_PI);
  const std::vector<float> mean(input.mean.begin(), input.mean.end());
  const std::vector<float> std(input.std.begin(), input.std.end());
  return NormalizePatches(ctx, patches_PI, input.channels, mean, std, dtype);
}

RopeTable MakePatchRope(ExecContext& ctx, const VisionRows& rows, int32_t head_dim, double theta,
                        DType dtype) {
  return MakeRopeTable(
      ctx, rows.positions, rows.num_patches,
      {.theta = theta, .layout = RopeLayout::kPerAxis, .sections = {head_dim / 4, head_dim / 4}},
      dtype);
}

}  // namespace omni::encoders
