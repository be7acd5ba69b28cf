#include "tools/data_make_video.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "runtime/base/check.h"
#include "runtime/base/status.h"
#include "tools/data_make_noise.h"

namespace omni::tools {
namespace {

constexpr std::array<std::array<float, 3>, 6> kRgb = {
    {{215, 35, 35}, {35, 190, 55}, {45, 75, 225}, {225, 215, 35}, {170, 45, 195}, {235, 235, 235}}};
constexpr std::array<std::array<double, 2>, 4> kSteps = {{{-1, 0}, {1, 0}, {0, -1}, {0, 1}}};

// Whether (x, y) from the centre is inside a shape of this radius. All have about the same area.
bool IsInside(absl::string_view shape, double x, double y, double radius) {
  x /= radius;
  y /= radius;
  const double ax = std::abs(x), ay = std::abs(y);
  if (shape == "circle") return x * x + y * y < 0.9;
  if (shape == "square") return std::max(ax, ay) < 0.85;
  if (shape == "triangle") return y < 0.85 && y > 1.9 * ax - 1.0;
  if (shape == "cross") return std::min(ax, ay) < 0.4 && std::max(ax, ay) < 1.0;
  if (shape == "diamond") return ax + ay < 1.2;
  OMNI_CHECK(shape == "hexagon");
  return ay < 0.85 && 0.87 * ax + 0.5 * ay < 0.87;
}

// The part of the pixel at (x, y) that is inside, by 4 x 4 points.
float Coverage(absl::string_view shape, double x, double y, double radius) {
  if (x * x + y * y > 2.5 * radius * radius) return 0;
  int inside = 0;
  for (int i = 0; i < 16; ++i) {
    inside += IsInside(shape, x + (i % 4 - 1.5) / 4, y + (i / 4 - 1.5) / 4, radius);
  }
  return static_cast<float>(inside) / 16.0f;
}

}  // namespace

const MotionSet& Motions(Split split) {
  static const MotionSet train = {.shapes = {"circle", "square", "triangle", "cross"},
                                  .speeds = {{2.5, 3.2}, {3.6, 4.5}}};
  static const MotionSet heldout = {.shapes = {"diamond", "hexagon"}, .speeds = {{3.2, 3.6}}};
  return split == Split::kTrain ? train : heldout;
}

absl::StatusOr<Media> MakeClip(int direction, int colour, Split split,
                               const dataloader::VideoPlugin& plugin, CounterRng& rng) {
  const MotionSet& motions = Motions(split);
  const absl::string_view shape = motions.shapes[rng.NextBelow(motions.shapes.size())];
  const auto& range = motions.speeds[rng.NextBelow(motions.speeds.size())];
  const double speed = Between(rng, range[0], range[1]);
  const double radius = Between(rng, 8, 13);
  // Where it starts does not depend on where it goes, so it may leave the frame. (Starts that kept
  // it inside made the places seen over time the same for opposite directions, and a small model
  // stayed at telling the axis alone.)
  const double start[2] = {Between(rng, 12, kClipSide - 12), Between(rng, 12, kClipSide - 12)};
  std::array<float, 3> ink;
  for (int c = 0; c < 3; ++c) {
    ink[c] = kRgb[colour][c] + static_cast<float>(Between(rng, -20, 20));
  }
  const auto ground = static_cast<float>(Between(rng, 0, 110));

  std::vector<uint8_t> frames(kClipFrames * kClipSide * kClipSide * 3);
  NoiseSource noise(&rng);
  uint8_t* out = frames.data();
  for (int frame = 0; frame < kClipFrames; ++frame) {
    const double centre_x = start[0] + kSteps[direction][0] * speed * frame;
    const double centre_y = start[1] + kSteps[direction][1] * speed * frame;
    for (int y = 0; y < kClipSide; ++y) {
      for (int x = 0; x < kClipSide; ++x) {
        const float alpha = Coverage(shape, x + 0.5 - centre_x, y + 0.5 - centre_y, radius);
        for (int c = 0; c < 3; ++c) {
          *out++ = ToByte(ground + alpha * (ink[c] - ground) + 5.0f * noise.Next());
        }
      }
    }
  }

  Media media;
  media.type = "video";
  media.extension = "mp4";
  media.made_with = {{"shape", std::string(shape)},
                     {"pixels_per_frame", absl::StrFormat("%.3f", speed)}};
  OMNI_ASSIGN_OR_RETURN(
      media.bytes,
      plugin.Encode(frames, {.height = kClipSide, .width = kClipSide},
                    {.format = dataloader::MediaFormat::kMp4, .fps = kClipFps, .quality = 20}));
  return media;
}

}  // namespace omni::tools
