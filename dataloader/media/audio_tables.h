// What LogMel holds: window, bands, transform, and the resampling filters met so far.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "dataloader/media/audio.h"
#include "dataloader/media/fft400.h"
#include "dataloader/media/resample.h"

namespace omni::dataloader {

struct MelBand {
  int first_bin = 0;
  std::vector<double> weights;
};

// A data set has a handful of sample rates; making a filter costs as much as a second of sound.
class ResamplerCache {
 public:
  static constexpr size_t kCapacity = 16;
  // Shared by the cache and the threads using it while it is replaced.
  std::shared_ptr<const Resampler> Get(int32_t from_rate);

 private:
  std::mutex mutex_;  // of the standard: thread sanitizer does not see into Abseil's
  std::vector<std::pair<int32_t, std::shared_ptr<const Resampler>>> known_;  // guarded by mutex_
};

struct LogMel::Tables {
  std::vector<double> window;
  std::vector<MelBand> bands;
  Fft400 fft;
  mutable ResamplerCache resamplers;
};

}  // namespace omni::dataloader
