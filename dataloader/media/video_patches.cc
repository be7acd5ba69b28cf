// Clips: which frames are drawn and how large they get, from metadata; and their patches.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <vector>

#include "absl/strings/str_cat.h"
#include "dataloader/media/image_codecs.h"
#include "dataloader/media/patches.h"
#include "dataloader/media/video.h"
#include "runtime/base/check.h"
#include "runtime/base/progress.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

// i * (last / (count - 1)) as numpy's linspace has it, halves to the even neighbour.
std::vector<int64_t> Spread(int64_t num_frames, int64_t count) {
  const double last = static_cast<double>(num_frames - 1);
  const double step = last / static_cast<double>(std::max<int64_t>(count - 1, 1));
  std::vector<int64_t> indices(count);
  for (int64_t i = 0; i < count; ++i) {
    indices[i] = static_cast<int64_t>(std::nearbyint(static_cast<double>(i) * step));
  }
  if (count > 1) indices.back() = num_frames - 1;
  return indices;
}

std::vector<int64_t> EvenFrames(const MediaInfo& info, const VideoOptions& options) {
  const int32_t pair = options.geometry.temporal_patch;
  const double total = static_cast<double>(info.num_frames);
  double wanted = total / info.fps * options.fps;
  wanted = std::clamp(wanted, static_cast<double>(options.min_frames),
                      static_cast<double>(std::max(options.max_frames, options.min_frames)));
  // WebM counts milliseconds, so its clips' rates are a little off: that is not to cost a frame.
  int64_t count = static_cast<int64_t>(std::floor(std::min(wanted + 0.05, total)));
  count = std::max<int64_t>(count / pair * pair, pair);
  std::vector<int64_t> indices(count);
  for (int64_t i = 0; i < count; ++i) {
    indices[i] = std::llround(static_cast<double>(i) * (total - 1) /
                              static_cast<double>(std::max<int64_t>(count - 1, 1)));
  }
  return indices;
}

std::vector<int64_t> Qwen25Frames(const MediaInfo& info, const VideoOptions& options) {
  const int64_t pair = options.geometry.temporal_patch;
  const int64_t most = std::min<int64_t>(options.max_frames, info.num_frames) / pair * pair;
  const double total = static_cast<double>(info.num_frames);
  const double wanted =
      std::min(std::max(total / info.fps * options.fps, static_cast<double>(options.min_frames)),
               static_cast<double>(most));
  const int64_t count = static_cast<int64_t>(std::floor(wanted / static_cast<double>(pair))) * pair;
  std::vector<int64_t> indices(count);
  const double step = total / static_cast<double>(count);
  for (int64_t i = 0; i < count; ++i) {
    // The reference cuts a float, which heals steps that fall short of a whole number. For a few
    // lengths (30 frames of which 26 are wanted) its arange ends with an index past the clip, which
    // then fails to decode: that one is left out.
    indices[i] = static_cast<int64_t>(static_cast<float>(static_cast<double>(i) * step));
  }
  return indices;
}

std::vector<int64_t> Qwen3Frames(const MediaInfo& info, const VideoOptions& options) {
  const double total = static_cast<double>(info.num_frames);
  int64_t count = static_cast<int64_t>(total / info.fps * options.fps);
  count = std::min<int64_t>(std::max<int64_t>(count, options.min_frames), options.max_frames);
  return Spread(info.num_frames, std::min(count, info.num_frames));
}

std::vector<int64_t> DrawnFrames(const MediaInfo& info, const VideoOptions& options) {
  switch (options.frame_rule) {
    case FrameRule::kEven:
      return EvenFrames(info, options);
    case FrameRule::kQwen2_5:
      return Qwen25Frames(info, options);
    case FrameRule::kQwen3:
      return Qwen3Frames(info, options);
  }
  return {};
}

}  // namespace

SeedBudget FitSeedBudget(int64_t frames) {
  constexpr int64_t kMaxTokens = 81920;
  constexpr int32_t kLevels[] = {640, 512, 384, 256, 160, 128};
  for (const int32_t level : kLevels) {
    if (frames * level <= kMaxTokens) return {.frames = frames, .tokens_per_frame = level};
  }
  constexpr int32_t kLeast = kLevels[std::size(kLevels) - 1];
  return {.frames = kMaxTokens / kLeast, .tokens_per_frame = kLeast};
}

absl::StatusOr<VideoPlan> PlanVideo(const MediaInfo& info, const VideoOptions& given) {
  VideoOptions options = given;
  const int32_t pair = options.geometry.temporal_patch;
  if (info.kind != MediaKind::kVideo || info.num_frames < 1 || !(info.fps > 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("clip of ", info.num_frames, " frames at ", info.fps, " frames/s"));
  }
  const int32_t factor = options.geometry.factor();
  VideoPlan plan;
  plan.frame_indices = DrawnFrames(info, options);
  if (options.budget == VideoBudget::kSeed) {
    // A grid of `pair` frames is what the budget calls a frame.
    const auto grids = (static_cast<int64_t>(plan.frame_indices.size()) + pair - 1) / pair;
    const SeedBudget budget = FitSeedBudget(grids);
    options.max_pixels =
        std::min(options.max_pixels, int64_t{budget.tokens_per_frame} * factor * factor);
    options.min_pixels = std::min(options.min_pixels, options.max_pixels);
    options.max_frames = static_cast<int32_t>(budget.frames) * pair;
    options.min_frames = std::min(options.min_frames, options.max_frames);
    if (budget.frames < grids) plan.frame_indices = DrawnFrames(info, options);
  }
  const auto drawn = static_cast<int64_t>(plan.frame_indices.size());
  if (drawn < pair) {
    return absl::InvalidArgumentError(absl::StrCat("clip of ", info.num_frames, " frames gives ",
                                                   drawn, ", expected ", pair, " at least"));
  }
  const ImageSize size{info.height, info.width};
  if (options.max_clip_pixels > 0) {
    OMNI_ASSIGN_OR_RETURN(plan.size, SmartResizeClip(drawn, pair, size,
                                                     {.factor = factor,
                                                      .min_pixels = options.min_clip_pixels,
                                                      .max_pixels = options.max_clip_pixels}));
  } else {
    OMNI_ASSIGN_OR_RETURN(plan.size, SmartResize(size, {.factor = factor,
                                                        .min_pixels = options.min_pixels,
                                                        .max_pixels = options.max_pixels}));
  }
  // Drawn frames per second, as the positions' time axis counts it.
  const double total = static_cast<double>(info.num_frames);
  plan.seconds_per_grid = pair * (total / info.fps) / static_cast<double>(drawn);
  while (plan.frame_indices.size() % pair != 0) {
    plan.frame_indices.push_back(plan.frame_indices.back());
  }
  plan.grid = {static_cast<int32_t>(plan.frame_indices.size()) / pair,
               plan.size.height / options.geometry.patch, plan.size.width / options.geometry.patch};
  for (int32_t t = 0; t < plan.grid.t; ++t) {
    const double first = static_cast<double>(plan.frame_indices[t * pair]) / info.fps;
    const double last = static_cast<double>(plan.frame_indices[t * pair + pair - 1]) / info.fps;
    plan.timestamps_s.push_back((first + last) / 2);
  }
  return plan;
}

void FramesToPatches(absl::Span<const uint8_t> frames, ImageSize size, const VideoPlan& plan,
                     const PatchGeometry& geometry, absl::Span<uint8_t> rows) {
  const int64_t source_bytes = int64_t{size.height} * size.width * 3;
  const int64_t frame_bytes = int64_t{plan.size.height} * plan.size.width * 3;
  const auto num_frames = static_cast<int64_t>(plan.frame_indices.size());
  const int64_t given = static_cast<int64_t>(frames.size()) / source_bytes;
  OMNI_CHECK(given >= 1 && given <= num_frames && num_frames - given < geometry.temporal_patch);
  OMNI_CHECK_EQ(static_cast<int64_t>(frames.size()), given * source_bytes);
  const RgbBuffer source(size);
  const Scratch resized(num_frames * frame_bytes);
  for (int64_t i = 0; i < num_frames; ++i) {
    uint8_t* out = resized.get() + i * frame_bytes;
    if (i >= given) {
      std::memcpy(out, out - frame_bytes, frame_bytes);
      continue;
    }
    std::memcpy(source.data.get(), frames.data() + i * source_bytes, source_bytes);
    ResizeRgb(source, plan.size, ResizeMode::kTorchvision, out);
  }
  PackPatches({resized.get(), static_cast<size_t>(num_frames * frame_bytes)},
              /*repeat_frame=*/false, geometry, plan.grid, rows);
}

absl::Status VideoToPatches(const VideoPlugin& video, absl::string_view bytes,
                            const MediaInfo& info, const VideoPlan& plan,
                            const VideoOptions& options, absl::Span<uint8_t> rows) {
  return VideoToPatches(video, bytes, info, plan, options, {0, plan.grid.num_rows()}, rows);
}

absl::Status VideoToPatches(const VideoPlugin& video, absl::string_view bytes,
                            const MediaInfo& info, const VideoPlan& plan,
                            const VideoOptions& options, RowRange wanted, absl::Span<uint8_t> rows,
                            Progress* progress) {
  OMNI_CHECK(wanted.begin >= 0 && wanted.end <= plan.grid.num_rows());
  OMNI_CHECK_EQ(static_cast<int64_t>(rows.size()), wanted.size() * options.geometry.row_elements());
  const ImageSize size{info.height, info.width};
  const bool is_resized_by_decoder = options.resize == ResizeMode::kFast || size == plan.size;
  const ImageSize decoded = is_resized_by_decoder ? plan.size : size;
  if (!is_resized_by_decoder) {
    OMNI_RETURN_IF_ERROR(CheckImageSize("clip's", decoded.height, decoded.width));
  }
  const int32_t pair = options.geometry.temporal_patch;
  const int64_t frame_bytes = int64_t{plan.size.height} * plan.size.width * 3;
  const int64_t rows_each = int64_t{plan.grid.h} * plan.grid.w;
  const RgbBuffer source(decoded);                                    // one frame as it comes
  const Scratch frames(pair * frame_bytes + RgbBuffer::kSlackBytes);  // of one temporal position
  return video.DecodeEach(
      bytes, plan.frame_indices, decoded,
      {source.data.get(), static_cast<size_t>(source.num_bytes())}, [&](int64_t i) {
        if (progress != nullptr) progress->Tick();
        const int64_t first_row = i / pair * rows_each;
        const RowRange here{std::max<int64_t>(wanted.begin - first_row, 0),
                            std::min(wanted.end - first_row, rows_each)};
        if (here.begin >= here.end) return;
        ResizeRgb(source, plan.size, options.resize, frames.get() + i % pair * frame_bytes);
        if (i % pair != pair - 1) return;
        uint8_t* out =
            rows.data() + (first_row + here.begin - wanted.begin) * options.geometry.row_elements();
        PackRows(frames.get(), RgbBuffer::kSlackBytes, /*repeat_frame=*/false, options.geometry,
                 {1, plan.grid.h, plan.grid.w}, here, out);
      });
}

}  // namespace omni::dataloader
