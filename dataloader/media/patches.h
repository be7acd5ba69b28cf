// Pictures and clips as the rows a vision tower reads.
//
// A row is one patch of `temporal_patch` frames, laid out [C, T, patch, patch] in uint8: C = 3
// (RGB), T = temporal_patch; the normalisation by mean and deviation happens later, on the
// device. Rows are in merge order: for each temporal pair, for each merge x merge block of
// patches (rows of blocks, then columns), its patches row by row, so that the merger takes
// merge * merge consecutive rows. A single picture is repeated temporal_patch times.
//
//   grid {t: 1, h: 4, w: 4}, merge 2: rows are patches (0,0) (0,1) (1,0) (1,1) (0,2) (0,3) ...
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "dataloader/media/image.h"
#include "dataloader/media/media_info.h"

namespace omni::dataloader {

class VideoPlugin;

struct PatchGeometry {
  int32_t patch = 14;
  int32_t temporal_patch = 2;
  int32_t merge = 2;

  int32_t factor() const { return patch * merge; }
  int32_t row_elements() const { return 3 * temporal_patch * patch * patch; }
};

// In patches: t pairs of frames, h x w patches each.
struct PatchGrid {
  int32_t t = 0, h = 0, w = 0;
  int64_t num_rows() const { return int64_t{t} * h * w; }
  bool operator==(const PatchGrid&) const = default;
};

struct ImageOptions {
  PatchGeometry geometry;
  int64_t min_pixels = 56 * 56;
  int64_t max_pixels = 28 * 28 * 1280;
};

// The grid a picture of `size` gets; from metadata alone. Errors as SmartResize.
absl::StatusOr<PatchGrid> ImageGrid(ImageSize size, const ImageOptions& options);

// Decodes, resizes to `grid` if the picture has another size, and packs. `rows` has
// grid.num_rows() * geometry.row_elements() bytes. DataLoss if the picture can't be decoded or
// its size no longer gives `grid`.
absl::Status ImageToPatches(absl::string_view bytes, const ImageOptions& options, PatchGrid grid,
                            absl::Span<uint8_t> rows);

// `frames` is [grid.t * temporal_patch, grid.h * patch, grid.w * patch, 3]; for a picture pass
// one frame (it is repeated). Cost: one pass over the bytes.
void PackPatches(absl::Span<const uint8_t> frames, bool repeat_frame, const PatchGeometry& geometry,
                 PatchGrid grid, absl::Span<uint8_t> rows);

// The inverse, for looking at a pack: frame `frame` of the grid as a picture.
Image UnpackPatches(absl::Span<const uint8_t> rows, const PatchGeometry& geometry, PatchGrid grid,
                    int32_t frame);

struct VideoOptions {
  PatchGeometry geometry;
  double fps = 2;                // frames drawn per second of the clip
  int32_t min_frames = 4;        // drawn at least (a shorter clip gives all it has, made even)
  int32_t max_frames = 768;      // drawn at most
  int64_t min_pixels = 56 * 56;  // of one frame
  int64_t max_pixels = 28 * 28 * 768;  // of one frame
};

// Which frames of a clip are drawn, from metadata alone: duration * fps, clamped to
// [min_frames, max_frames] and to what the clip has, rounded down to a multiple of
// temporal_patch (at least that many: the last frame is repeated), spread evenly from the first
// frame to the last.
struct VideoPlan {
  PatchGrid grid;
  ImageSize size;                      // of the resized frames
  std::vector<int64_t> frame_indices;  // [grid.t * temporal_patch], never decreasing
  std::vector<double> timestamps_s;    // of each grid.t: the mean of its frames' times, seconds
  double seconds_per_grid = 0;         // between two temporal positions
};
absl::StatusOr<VideoPlan> PlanVideo(const MediaInfo& info, const VideoOptions& options);

// Decodes the planned frames and packs them, as ImageToPatches does. DataLoss for a clip that is
// torn or has fewer frames than its metadata said.
absl::Status VideoToPatches(const VideoPlugin& video, absl::string_view bytes,
                            const VideoPlan& plan, const PatchGeometry& geometry,
                            absl::Span<uint8_t> rows);

}  // namespace omni::dataloader
