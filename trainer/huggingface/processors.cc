#include "trainer/huggingface/processors.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status.h"
#include "trainer/huggingface/config_keys.h"

namespace omni::trainer {
namespace {

// Least and most pixels.
absl::StatusOr<std::pair<int64_t, int64_t>> Bounds(const ConfigNode& processor, int64_t least,
                                                   int64_t most) {
  ConfigKeys keys(processor), size(processor.Get("size"));
  const int32_t low = keys.Int(
      "min_pixels", size.Int("shortest_edge", size.Int("min_pixels", static_cast<int32_t>(least))));
  const int32_t high = keys.Int(
      "max_pixels", size.Int("longest_edge", size.Int("max_pixels", static_cast<int32_t>(most))));
  OMNI_RETURN_IF_ERROR(keys.status());
  OMNI_RETURN_IF_ERROR(size.status());
  return std::pair<int64_t, int64_t>(low, high);
}

}  // namespace

absl::StatusOr<std::string> VisionDataYaml(const FamilyInput& input,
                                           const VisionProcessorTraits& traits) {
  const ConfigNode video_file =
      input.video_processor.is_map() ? input.video_processor : input.processor;
  OMNI_ASSIGN_OR_RETURN(const auto image,
                        Bounds(input.processor, traits.min_pixels, traits.max_pixels));
  OMNI_ASSIGN_OR_RETURN(const auto video,
                        Bounds(traits.fixed_video_pixels ? ConfigNode() : video_file,
                               traits.min_video_pixels, traits.max_video_pixels));
  ConfigKeys keys(video_file);
  const std::string per = traits.bounds_per_clip ? "_per_clip" : "_per_frame";
  std::string yaml =
      absl::StrCat("image: {resize: torchvision, alpha: drop, min_pixels: ", image.first,
                   ", max_pixels: ", image.second,
                   "}, video: {resize: torchvision, frame_rule: ", traits.frame_rule,
                   ", fps: ", keys.Number("fps", 2), ", min_frames: ", keys.Int("min_frames", 4),
                   ", max_frames: ", keys.Int("max_frames", 768), ", min_pixels", per, ": ",
                   video.first, ", max_pixels", per, ": ", video.second, "}");
  OMNI_RETURN_IF_ERROR(keys.status());
  return yaml;
}

absl::StatusOr<std::string> AudioDataYaml(const FamilyInput& input, int32_t mel_bands,
                                          int32_t window_s) {
  ConfigKeys keys(input.processor);
  std::string yaml = absl::StrCat("audio: {mel_bands: ", mel_bands,
                                  ", max_seconds: ", keys.Int("chunk_length", window_s), "}");
  OMNI_RETURN_IF_ERROR(keys.status());
  return yaml;
}

}  // namespace omni::trainer
