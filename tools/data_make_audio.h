// Spoken words: libespeak-ng in this process, 0.96 s at 16 kHz.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/base/rng.h"
#include "tools/data_make_shard.h"
#include "tools/data_make_tasks.h"

namespace omni::tools {

inline constexpr int32_t kSpeechRate = 16000;   // Hz
inline constexpr int32_t kClipSamples = 15360;  // 0.96 s

// What a split's clips are made from. Variants, speeds and pitches of the two splits are
// disjoint; held-out has one accent more.
struct VoiceSet {
  std::vector<const char*> accents;   // espeak-ng voices: "en-us"
  std::vector<const char*> variants;  // speakers: "f1"
  std::vector<int> words_per_minute;
  std::vector<int> pitches;  // 0 .. 100
};
const VoiceSet& Voices(Split split);

// libespeak-ng keeps its state in globals: one maker at a time in a process, one thread at a
// time. The sound of a clip depends on those made before it, so equal sequences give equal bytes.
class SpeechMaker {
 public:
  // `seed` fixes the library's own noise. FailedPrecondition if it or its data is missing.
  static absl::StatusOr<std::unique_ptr<SpeechMaker>> Create(uint64_t seed);
  ~SpeechMaker();

  // Voice, speed, pitch, place, gain, noise and file format are drawn from `rng`.
  absl::StatusOr<Media> Make(absl::string_view word, Split split, CounterRng& rng);

  // The library's, without starting it.
  static absl::StatusOr<std::string> Version();

 private:
  struct Library;
  explicit SpeechMaker(std::unique_ptr<Library> library);
  // The word alone, silence trimmed, at kSpeechRate, in [-1, 1].
  absl::StatusOr<std::vector<float>> Speak(absl::string_view word, const std::string& voice,
                                           int words_per_minute, int pitch);

  std::unique_ptr<Library> library_;
};

}  // namespace omni::tools
