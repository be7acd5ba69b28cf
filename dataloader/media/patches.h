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

namespace omni {
class Progress;  // runtime/base/progress.h
}  // namespace omni

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

// Rows [begin, end) of a grid: those a rank keeps of a sample that several encode. The others are
// not written anywhere.
struct RowRange {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};

struct ImageOptions {
  PatchGeometry geometry;
  ResizeMode resize = ResizeMode::kFast;
  AlphaMode alpha = AlphaMode::kWhite;
  int64_t min_pixels = 56 * 56;
  int64_t max_pixels = 28 * 28 * 1280;
};

// The grid a picture of `size` gets; from metadata alone. Errors as SmartResize.
absl::StatusOr<PatchGrid> ImageGrid(ImageSize size, const ImageOptions& options);

// Decodes, resizes to `grid` if the picture has another size, and packs the `wanted` rows. `rows`
// has wanted.size() * geometry.row_elements() bytes. DataLoss if the picture can't be decoded or
// its size no longer gives `grid`.
absl::Status ImageToPatches(absl::string_view bytes, const ImageOptions& options, PatchGrid grid,
                            RowRange wanted, absl::Span<uint8_t> rows);
// All of them.
absl::Status ImageToPatches(absl::string_view bytes, const ImageOptions& options, PatchGrid grid,
                            absl::Span<uint8_t> rows);

// `frames` is [grid.t * temporal_patch, grid.h * patch, grid.w * patch, 3]; for a picture pass
// one frame (it is repeated). Cost: one pass over the bytes.
void PackPatches(absl::Span<const uint8_t> frames, bool repeat_frame, const PatchGeometry& geometry,
                 PatchGrid grid, absl::Span<uint8_t> rows);

// The same for some rows; `slack` bytes past the frames may be read.
void PackRows(const uint8_t* frames, int64_t slack, bool repeat_frame,
              const PatchGeometry& geometry, const PatchGrid& grid, RowRange wanted, uint8_t* rows);

// The inverse, for looking at a pack: frame `frame` of the grid as a picture.
Image UnpackPatches(absl::Span<const uint8_t> rows, const PatchGeometry& geometry, PatchGrid grid,
                    int32_t frame);

// Which frames of a clip are drawn. All want n = duration * fps of them, within [min_frames,
// max_frames] and what the clip has; they differ in rounding:
enum class FrameRule : uint8_t {
  kEven,     // n cut to whole grids (temporal_patch frames; a shorter clip repeats its last), from
             // the first frame to the last
  kQwen2_5,  // n cut to whole grids, one at the start of each n-th of the clip:
             // Qwen2VLVideoProcessor
  kQwen3,    // n cut to a whole number, from the first frame to the last; the last is repeated to
             // fill its grid: Qwen3VLVideoProcessor
};

// How many rows (tokens) a clip may have.
enum class VideoBudget : uint8_t {
  kNone,  // as many as its frames' bounds give
  kSeed   // Seed1.5-VL's: FitSeedBudget
};

// Seed1.5-VL (arXiv 2505.07062): a clip gets at most 81,920 tokens. Its frames get the most
// generous level of 640, 512, 384, 256, 160, 128 tokens each at which all of them fit; if they
// don't at the last, 640 of them are drawn, evenly. 0 frames give 0 of the first level.
struct SeedBudget {
  int64_t frames = 0;
  int32_t tokens_per_frame = 0;
};
SeedBudget FitSeedBudget(int64_t frames);

struct VideoOptions {
  PatchGeometry geometry;
  VideoBudget budget = VideoBudget::kNone;  // on top of the bounds below
  ResizeMode resize = ResizeMode::kFast;
  FrameRule frame_rule = FrameRule::kEven;
  double fps = 2;                // frames drawn per second of the clip
  int32_t min_frames = 4;        // drawn at least (a shorter clip gives all it has)
  int32_t max_frames = 768;      // drawn at most
  int64_t min_pixels = 56 * 56;  // of one frame
  int64_t max_pixels = 28 * 28 * 768;
  // If set (> 0), instead: of all drawn frames together (SmartResizeClip).
  int64_t min_clip_pixels = 0;
  int64_t max_clip_pixels = 0;
};

struct VideoPlan {
  PatchGrid grid;
  ImageSize size;                      // of the resized frames
  std::vector<int64_t> frame_indices;  // [grid.t * temporal_patch], never decreasing
  // Of each of grid.t, seconds: half way between its first and its last frame.
  std::vector<double> timestamps_s;
  double seconds_per_grid = 0;  // between two temporal positions
};
// From metadata alone. InvalidArgument: errors of SmartResize and SmartResizeClip, a clip without
// frames or a rate, and by the families' rules one of less than temporal_patch frames.
absl::StatusOr<VideoPlan> PlanVideo(const MediaInfo& info, const VideoOptions& options);

// Decoded frames [n, size.height, size.width, 3] of a clip, those of plan.frame_indices without the
// last one's repetition, resized by kTorchvision and packed.
void FramesToPatches(absl::Span<const uint8_t> frames, ImageSize size, const VideoPlan& plan,
                     const PatchGeometry& geometry, absl::Span<uint8_t> rows);

// Decodes the planned frames and packs them, as ImageToPatches does; temporal_patch of them and one
// more are in memory at a time, however long the clip. DataLoss for a clip that is torn or has
// fewer frames than its metadata, `info`, said. `progress`, which may be null, is ticked for each
// frame: a long clip takes longer than a wait for a sample may show nothing.
absl::Status VideoToPatches(const VideoPlugin& video, absl::string_view bytes,
                            const MediaInfo& info, const VideoPlan& plan,
                            const VideoOptions& options, RowRange wanted, absl::Span<uint8_t> rows,
                            Progress* progress = nullptr);
// All of them.
absl::Status VideoToPatches(const VideoPlugin& video, absl::string_view bytes,
                            const MediaInfo& info, const VideoPlan& plan,
                            const VideoOptions& options, absl::Span<uint8_t> rows);

}  // namespace omni::dataloader
