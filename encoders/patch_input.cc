#include "encoders/patch_input.h"

#include <algorithm>
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

namespace {

// Rows of `to` are the cells of a pack in this order. They go through a small buffer, for a copy of
// the pack would be megabytes that come and go with every microbatch.
void UploadCells(ExecContext& ctx, const uint8_t* payload, absl::Span<const int32_t> cells,
                 int64_t rows_per_cell, const TensorView& to) {
  constexpr int64_t kStagedBytes = 128 << 10;
  const int64_t cell_bytes = rows_per_cell * to.size(1);
  const auto most = static_cast<size_t>(std::max<int64_t>(1, kStagedBytes / cell_bytes));
  std::vector<uint8_t> staged(std::min(most, cells.size()) * cell_bytes);
  for (size_t first = 0; first < cells.size(); first += most) {
    const absl::Span<const int32_t> piece = cells.subspan(first, most);
    for (size_t i = 0; i < piece.size(); ++i) {
      std::memcpy(staged.data() + i * cell_bytes, payload + piece[i] * cell_bytes, cell_bytes);
    }
    const auto count = static_cast<int64_t>(piece.size());
    Upload(ctx, staged.data(), count * cell_bytes,
           to.Rows(static_cast<int64_t>(first) * rows_per_cell, count * rows_per_cell));
  }
}

}  // namespace

TensorView UploadPatches(ExecContext& ctx, const parallel::MediaPack& pack, const PatchInput& input,
                         const VisionRows& rows, DType dtype) {
  OMNI_CHECK_EQ(static_cast<int>(pack.dtype), static_cast<int>(DType::kUInt8));
  OMNI_CHECK_EQ(pack.row_elements, input.patch_elements());
  const int64_t num_patches = pack.num_rows();
  OMNI_CHECK_EQ(num_patches, rows.num_patches);
  const TensorView patches_PI = ctx.New(DType::kUInt8, {num_patches, input.patch_elements()});
  if (rows.cells.empty()) {
    Upload(ctx, pack.payload.data(), patches_PI.num_bytes(), patches_PI);
  } else {
    UploadCells(ctx, pack.payload.data(), rows.cells, int64_t{input.merge} * input.merge,
                patches_PI);
  }
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
