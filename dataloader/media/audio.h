// Sound: WAV, FLAC, OGG (Vorbis, Opus) and MP3 into Whisper's log-mel features.
//
// Every clip becomes mono at 16 kHz; its length after resampling is a function of its metadata
// (AudioSamples), so a batch can be laid out before anything is decoded. Nothing is padded to
// 30 s: a clip of n samples has n / 160 frames of 10 ms. Only clips under 40 ms, which would
// give the tower not one row, are filled up with silence to that.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "dataloader/media/media_info.h"

namespace omni::dataloader {

inline constexpr int32_t kAudioRate = 16000;      // Hz, of every clip after decoding
inline constexpr int32_t kMelHop = 160;           // samples per frame
inline constexpr int64_t kMinAudioSamples = 640;  // 40 ms

struct AudioOptions {
  int32_t mel_bands = 80;   // 80 (Whisper up to v2) or 128 (v3, Qwen)
  double max_seconds = 30;  // longer clips are an error, not cut
  // The audio encoder's, not read: with a window (> 0) a sound stands at the start of so many
  // frames of silence, and `context_frames` past its last are made too, as far as the window goes.
  int32_t window_frames = 0, context_frames = 0;
};

// Samples at 16 kHz, and log-mel frames, of a clip with this metadata.
int64_t AudioSamples(const MediaInfo& info);
int64_t MelFrames(const MediaInfo& info);

// Frames of a sound, and rows made for it: those and the context after them. Without a window the
// frames are MelFrames and there is no more; in one, a frame the sound only begins counts as well
// (the reference's feature_attention_mask).
struct MelShape {
  int64_t frames = 0, rows = 0;
};
MelShape MelShapeOf(int64_t num_samples, const AudioOptions& options);

// Decodes, mixes to mono (mean of the channels), resamples to 16 kHz: AudioSamples(info) floats
// in [-1, 1]. DataLoss for what is not a sound, is torn, or has no samples; InvalidArgument if
// it lasts longer than max_seconds.
absl::StatusOr<std::vector<float>> DecodeAudio(absl::string_view bytes, double max_seconds);

// Band-limited resampling by a windowed sinc (Kaiser, 80 dB), polyphase. The result has
// ceil(n * to / from) samples; equal rates copy.
std::vector<float> Resample(absl::Span<const float> samples, int32_t from_rate, int32_t to_rate);

// Whisper's front end: periodic Hann 400, hop 160, reflected edges, power spectrum, Slaney mel
// bands up to 8 kHz, log10 floored at 1e-10 and at 8 below the clip's maximum, (x + 4) / 4.
// Threads may share one; keep it, since making it costs 0.2 ms and it remembers the resampling
// filters of the sample rates AudioToMel met.
class LogMel {
 public:
  explicit LogMel(int32_t mel_bands);  // >= 1
  ~LogMel();
  LogMel(LogMel&&) noexcept;
  LogMel& operator=(LogMel&&) noexcept;

  int32_t mel_bands() const;
  static int64_t NumFrames(int64_t num_samples) { return num_samples / kMelHop; }

  // `samples` at 16 kHz, at least 201; `mel` is [F, mel_bands] for the first F frames, at most
  // NumFrames(samples.size()), among which the maximum is taken.
  void Compute(absl::Span<const float> samples, absl::Span<float> mel) const;

  struct Tables;  // audio_tables.h
  const Tables& tables() const { return *tables_; }

 private:
  std::unique_ptr<const Tables> tables_;
};

// The log-mel of a sound as the encoder wants it: `mel` is [MelShapeOf(...).rows, mel_bands].
void MelOfSamples(std::vector<float> samples, const AudioOptions& options, const LogMel& log_mel,
                  absl::Span<float> mel);

// Decodes and does that. `num_frames`: what the clip's metadata gave; DataLoss also if the clip has
// another length.
absl::Status AudioToMel(absl::string_view bytes, const AudioOptions& options, const LogMel& log_mel,
                        int64_t num_frames, absl::Span<float> mel);

}  // namespace omni::dataloader
