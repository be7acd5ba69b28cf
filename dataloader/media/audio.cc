#include "dataloader/media/audio.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "dataloader/media/audio_tables.h"
#include "dataloader/media/resample.h"
#include "dataloader/media/sound_file.h"
#include "runtime/base/status.h"

namespace omni::dataloader {
namespace {

int64_t ResampledSamples(int64_t num_samples, int64_t rate) {
  return std::max((num_samples * kAudioRate + rate - 1) / rate, kMinAudioSamples);
}

absl::StatusOr<std::vector<float>> Decode(absl::string_view bytes, double max_seconds,
                                          ResamplerCache* resamplers) {
  OMNI_ASSIGN_OR_RETURN(SoundFile sound, SoundFile::Open(bytes));
  const double seconds = static_cast<double>(sound.num_samples()) / sound.sample_rate();
  if (seconds > max_seconds) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "sound of %.2f s is longer than the %g s allowed (max_seconds)", seconds, max_seconds));
  }
  OMNI_ASSIGN_OR_RETURN(std::vector<float> samples, sound.ReadMono());
  if (sound.sample_rate() != kAudioRate) {
    samples = resamplers->Get(sound.sample_rate())->Run(samples);
  }
  if (static_cast<int64_t>(samples.size()) < kMinAudioSamples) samples.resize(kMinAudioSamples);
  return samples;
}

}  // namespace

int64_t AudioSamples(const MediaInfo& info) {
  return ResampledSamples(info.num_samples, info.sample_rate);
}

int64_t MelFrames(const MediaInfo& info) { return LogMel::NumFrames(AudioSamples(info)); }

MelShape MelShapeOf(int64_t num_samples, const AudioOptions& options) {
  if (options.window_frames == 0) {
    const int64_t frames = LogMel::NumFrames(num_samples);
    return {.frames = frames, .rows = frames};
  }
  const int64_t window = options.window_frames;
  const int64_t frames = std::min((num_samples + kMelHop - 1) / kMelHop, window);
  return {.frames = frames, .rows = std::min(frames + options.context_frames, window)};
}

void MelOfSamples(std::vector<float> samples, const AudioOptions& options, const LogMel& log_mel,
                  absl::Span<float> mel) {
  if (options.window_frames == 0) {
    log_mel.Compute(samples, mel);
    return;
  }
  // The two frames past a sound's last still see some of it, those after them only silence, which
  // is at the floor: so the maximum of the window is among these.
  const int64_t window = options.window_frames;
  const int64_t frames = MelShapeOf(static_cast<int64_t>(samples.size()), options).frames;
  const int64_t heard = std::min(frames + 2, window);
  const int64_t rows = static_cast<int64_t>(mel.size()) / log_mel.mel_bands();
  const int64_t made = std::max(heard, rows);
  // Silence for the last of them to look into; at the window's end it sees its mirror.
  samples.resize(std::min(made + 2, window) * kMelHop);
  if (made == rows) {
    log_mel.Compute(samples, mel);
    return;
  }
  std::vector<float> all(made * log_mel.mel_bands());
  log_mel.Compute(samples, absl::MakeSpan(all));
  std::copy_n(all.begin(), mel.size(), mel.begin());
}

absl::StatusOr<std::vector<float>> DecodeAudio(absl::string_view bytes, double max_seconds) {
  ResamplerCache resamplers;
  return Decode(bytes, max_seconds, &resamplers);
}

std::vector<float> Resample(absl::Span<const float> samples, int32_t from_rate, int32_t to_rate) {
  return Resampler(from_rate, to_rate).Run(samples);
}

absl::Status AudioToMel(absl::string_view bytes, const AudioOptions& options, const LogMel& log_mel,
                        int64_t num_frames, absl::Span<float> mel) {
  OMNI_ASSIGN_OR_RETURN(std::vector<float> samples,
                        Decode(bytes, options.max_seconds, &log_mel.tables().resamplers));
  const int64_t found = MelShapeOf(static_cast<int64_t>(samples.size()), options).frames;
  if (found != num_frames) {
    return absl::DataLossError(
        absl::StrCat("sound has ", found, " frames of 10 ms, its index says ", num_frames));
  }
  MelOfSamples(std::move(samples), options, log_mel, mel);
  return absl::OkStatus();
}

}  // namespace omni::dataloader
