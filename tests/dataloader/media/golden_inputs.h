// The inputs of tools/golden/media.py, and its results read back.
#pragma once

#include <cmath>
#include <cstring>
#include <numbers>
#include <string>
#include <vector>

#include "dataloader/media/encode.h"
#include "dataloader/media/image.h"
#include "runtime/base/check.h"
#include "runtime/base/file.h"

namespace omni::dataloader {

// Numerical Recipes' linear congruence, upper 16 bits.
class Lcg {
 public:
  explicit Lcg(uint32_t seed) : x_(seed) {}
  uint32_t Next() {
    x_ = x_ * 1664525u + 1013904223u;
    return x_ >> 16;
  }

 private:
  uint32_t x_;
};

// Smooth waves under noise.
inline Image GoldenPicture(int32_t height, int32_t width, uint32_t seed) {
  Lcg lcg(seed);
  Image image{{height, width}, {}};
  for (int32_t y = 0; y < height; ++y) {
    for (int32_t x = 0; x < width; ++x) {
      for (int32_t c = 0; c < 3; ++c) {
        image.rgb.push_back(
            static_cast<uint8_t>((x * (3 + c) + y * (5 - c)) % 192 + lcg.Next() % 64));
      }
    }
  }
  return image;
}

inline std::vector<float> GoldenWave(const std::string& kind, int64_t n) {
  std::vector<float> wave(n, 0.0f);
  Lcg lcg(77);
  for (int64_t t = 0; t < n; ++t) {
    const double phase = 2 * std::numbers::pi * static_cast<double>(t) / 16000;
    if (kind == "tone") wave[t] = static_cast<float>(0.5 * std::sin(1000 * phase));
    if (kind != "mix") continue;
    const double noise = (static_cast<double>(lcg.Next()) - 32768) / 32768;
    const double fade = 0.1 + 0.9 * static_cast<double>(t % 8000) / 8000;
    wave[t] = static_cast<float>(0.05 * noise * fade + 0.3 * std::sin(220 * phase) * fade);
  }
  return wave;
}

inline std::string ReadGolden(const std::string& name) {
  absl::StatusOr<std::string> bytes =
      ReadFile(std::string(OMNI_SOURCE_DIR "/tests/golden/media/") + name);
  OMNI_CHECK_OK(bytes.status());
  return *std::move(bytes);
}

}  // namespace omni::dataloader
