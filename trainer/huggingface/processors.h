// What a family's processor files say about media, as keys of a recipe's `data`: bounds of
// pixels, frames of clips, length of sounds. With them pictures, clips and sounds become what
// transformers' processors make of them.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "trainer/huggingface/family.h"

namespace omni::trainer {

// What differs between families and is not in the files, or where they are silent.
struct VisionProcessorTraits {
  std::string frame_rule;        // of data.video
  bool bounds_per_clip = false;  // the video processor's pixels are of all frames together
  int64_t min_pixels = 56 * 56;
  int64_t max_pixels = 28 * 28 * 1280;
  int64_t min_video_pixels = 128 * 28 * 28;
  int64_t max_video_pixels = 28 * 28 * 768;
  // A clip's bounds are those above, whatever the files say.
  bool fixed_video_pixels = false;
};
inline VisionProcessorTraits Qwen25VisionProcessor() { return {.frame_rule = "qwen2_5"}; }
// Qwen2_5OmniProcessor hands its video processor these bounds over the files' own.
inline VisionProcessorTraits Qwen25OmniProcessor() {
  return {.frame_rule = "qwen2_5", .fixed_video_pixels = true};
}
inline VisionProcessorTraits Qwen3VisionProcessor() {
  return {.frame_rule = "qwen3",
          .bounds_per_clip = true,
          .min_pixels = 65536,
          .max_pixels = 16777216,
          .min_video_pixels = 128 * 32 * 32,
          .max_video_pixels = 32 * 32 * 768};
}

// "image: {..}, video: {..}". As transformers reads them: bounds are min_pixels and max_pixels, or
// size.shortest_edge and size.longest_edge; without a video_preprocessor_config.json the
// preprocessor_config.json is the video processor's too.
absl::StatusOr<std::string> VisionDataYaml(const FamilyInput& input,
                                           const VisionProcessorTraits& traits);

// "audio: {..}": the bands of the audio tower, and the extractor's window (chunk_length, seconds,
// `window_s` where the file has none), beyond which transformers cuts a sound.
absl::StatusOr<std::string> AudioDataYaml(const FamilyInput& input, int32_t mel_bands,
                                          int32_t window_s);

}  // namespace omni::trainer
