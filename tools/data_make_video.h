// Clips of one moving shape: 8 frames of 56 x 56, H.264 in MP4.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "dataloader/media/video.h"
#include "runtime/base/rng.h"
#include "tools/data_make_shard.h"
#include "tools/data_make_tasks.h"

namespace omni::tools {

inline constexpr int kClipFrames = 8, kClipSide = 56, kClipFps = 4;

// Shapes and speeds (pixels per frame) of a split; those of the two splits are disjoint.
struct MotionSet {
  std::vector<absl::string_view> shapes;
  std::vector<std::array<double, 2>> speeds;  // ranges
};
const MotionSet& Motions(Split split);

// Shape, size, speed, start, shade, ground and noise are drawn from `rng`; direction and colour
// are independent of them. `direction` and `colour` index kDirections and kColours.
absl::StatusOr<Media> MakeClip(int direction, int colour, Split split,
                               const dataloader::VideoPlugin& plugin, CounterRng& rng);

}  // namespace omni::tools
