#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "dataloader/media/audio.h"
#include "dataloader/media/audio_tables.h"
#include "runtime/base/check.h"

namespace omni::dataloader {
namespace {

constexpr int kWindow = Fft400::kPoints;
constexpr double kFloor = 1e-10;

// Slaney's mel scale: linear below 1 kHz (15 mel), logarithmic above.
constexpr double kHzPerMel = 200.0 / 3, kBreakHz = 1000, kBreakMel = 15;
const double kLogStep = std::log(6.4) / 27;

double HzToMel(double hz) {
  return hz < kBreakHz ? hz / kHzPerMel : kBreakMel + std::log(hz / kBreakHz) / kLogStep;
}
double MelToHz(double mel) {
  return mel < kBreakMel ? mel * kHzPerMel : kBreakHz * std::exp(kLogStep * (mel - kBreakMel));
}

// Triangles between neighbouring points of the mel scale up to 8 kHz, each of area one.
std::vector<MelBand> MakeBands(int32_t num_bands) {
  std::vector<double> edges(num_bands + 2);
  const double top = HzToMel(kAudioRate / 2);
  for (int32_t i = 0; i < num_bands + 2; ++i) edges[i] = MelToHz(top * i / (num_bands + 1));
  std::vector<MelBand> bands(num_bands);
  for (int32_t b = 0; b < num_bands; ++b) {
    const double low = edges[b], center = edges[b + 1], high = edges[b + 2];
    for (int bin = 0; bin < Fft400::kBins; ++bin) {
      const double hz = static_cast<double>(bin) * kAudioRate / kWindow;
      const double weight = std::min((hz - low) / (center - low), (high - hz) / (high - center));
      if (weight <= 0) continue;
      if (bands[b].weights.empty()) bands[b].first_bin = bin;
      bands[b].weights.push_back(weight * 2 / (high - low));
    }
  }
  return bands;
}

// Index into n samples of a position before the first or past the last: edges are mirrors.
int64_t Reflect(int64_t i, int64_t n) {
  if (i < 0) return -i;
  return i < n ? i : 2 * (n - 1) - i;
}

}  // namespace

std::shared_ptr<const Resampler> ResamplerCache::Get(int32_t from_rate) {
  const std::lock_guard lock(mutex_);
  for (const auto& [rate, resampler] : known_) {
    if (rate == from_rate) return resampler;
  }
  if (known_.size() >= kCapacity) known_.erase(known_.begin());
  known_.emplace_back(from_rate, std::make_shared<const Resampler>(from_rate, kAudioRate));
  return known_.back().second;
}

LogMel::LogMel(int32_t mel_bands) {
  OMNI_CHECK(mel_bands >= 1);
  auto tables = std::make_unique<Tables>();
  tables->bands = MakeBands(mel_bands);
  tables->window.resize(kWindow);
  for (int i = 0; i < kWindow; ++i) {
    tables->window[i] = 0.5 - 0.5 * std::cos(2 * std::numbers::pi * i / kWindow);
  }
  tables_ = std::move(tables);
}
LogMel::~LogMel() = default;
LogMel::LogMel(LogMel&&) noexcept = default;
LogMel& LogMel::operator=(LogMel&&) noexcept = default;

int32_t LogMel::mel_bands() const { return static_cast<int32_t>(tables_->bands.size()); }

void LogMel::Compute(absl::Span<const float> samples, absl::Span<float> mel) const {
  const int64_t n = static_cast<int64_t>(samples.size());
  const int32_t num_bands = mel_bands();
  const int64_t num_frames = static_cast<int64_t>(mel.size()) / num_bands;
  OMNI_CHECK(n > kWindow / 2);
  OMNI_CHECK_EQ(static_cast<int64_t>(mel.size()), num_frames * num_bands);
  OMNI_CHECK_LE(num_frames, NumFrames(n));
  constexpr int kLanes = 4;
  Fft400::Lanes x[kWindow], power[Fft400::kBins];
  float largest = -10;  // log10 of the floor
  for (int64_t frame = 0; frame < num_frames; frame += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      // Frames past the last are computed like it and dropped.
      const int64_t start = std::min(frame + lane, num_frames - 1) * kMelHop - kWindow / 2;
      const bool inside = start >= 0 && start + kWindow <= n;
      for (int i = 0; i < kWindow; ++i) {
        const float sample = samples[inside ? start + i : Reflect(start + i, n)];
        x[i][lane] = sample * tables_->window[i];
      }
    }
    tables_->fft.Power(x, power);
    const int64_t lanes = std::min<int64_t>(kLanes, num_frames - frame);
    for (int32_t b = 0; b < num_bands; ++b) {
      const MelBand& band = tables_->bands[b];
      Fft400::Lanes sum{};
      for (size_t k = 0; k < band.weights.size(); ++k) {
        sum += power[band.first_bin + k] * band.weights[k];
      }
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const float value = static_cast<float>(std::log10(std::max(sum[lane], kFloor)));
        mel[(frame + lane) * num_bands + b] = value;
        largest = std::max(largest, value);
      }
    }
  }
  for (float& value : mel) value = (std::max(value, largest - 8) + 4) / 4;
}

}  // namespace omni::dataloader
