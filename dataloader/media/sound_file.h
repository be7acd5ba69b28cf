// A sound in memory, opened by libsndfile.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace omni::dataloader {

class SoundFile {
 public:
  // `bytes` must outlive the object. DataLoss: not a sound, torn, no samples, or absurd (more
  // than 64 channels or a day, a rate outside [1 kHz, 384 kHz]).
  static absl::StatusOr<SoundFile> Open(absl::string_view bytes);
  ~SoundFile();
  SoundFile(SoundFile&&) noexcept;
  SoundFile& operator=(SoundFile&&) noexcept;

  int64_t num_samples() const;  // per channel
  int32_t sample_rate() const;
  int32_t num_channels() const;

  // All samples, the mean of the channels. DataLoss if there are fewer than num_samples.
  absl::StatusOr<std::vector<float>> ReadMono();

 private:
  struct Impl;
  explicit SoundFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace omni::dataloader
