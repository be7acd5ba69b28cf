#include "dataloader/media/resample.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "runtime/base/check.h"

namespace omni::dataloader {
namespace {

constexpr double kZeroCrossings = 48;
constexpr double kBeta = 7.857;    // Kaiser: 80 dB
constexpr double kRolloff = 0.95;  // the cutoff, of the lower Nyquist frequency

double BesselI0(double x) {
  double term = 1, sum = 1;
  for (int k = 1; k < 50 && term > 1e-12 * sum; ++k) {
    term *= (x / (2 * k)) * (x / (2 * k));
    sum += term;
  }
  return sum;
}

float Dot(const float* a, const float* b, int32_t n) {
  __m256 sum = _mm256_setzero_ps();
  for (int32_t i = 0; i < n; i += 8) {
    sum = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), sum);
  }
  __m128 v = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
  v = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
}

}  // namespace

Resampler::Resampler(int32_t from_rate, int32_t to_rate) {
  OMNI_CHECK(from_rate >= 1 && to_rate >= 1);
  const int64_t common = std::gcd(from_rate, to_rate);
  up_ = to_rate / common;
  down_ = from_rate / common;
  if (up_ == down_) return;
  // In units of the input: one zero crossing every `period` samples.
  const double cutoff = kRolloff * std::min(1.0, static_cast<double>(up_) / down_);
  const double half_width = kZeroCrossings / cutoff;
  reach_ = static_cast<int32_t>(std::ceil(half_width));
  taps_ = (2 * reach_ + 1 + 7) / 8 * 8;
  filters_.assign(up_ * taps_, 0.0f);
  const double norm = 1 / BesselI0(kBeta);
  std::vector<double> phase_filter(taps_);
  for (int64_t phase = 0; phase < up_; ++phase) {
    const double fraction = static_cast<double>(phase) / up_;
    double sum = 0;
    for (int32_t k = 0; k < taps_; ++k) {
      const double t = (k - reach_) - fraction;  // from the output position to this input
      const double edge = 1 - (t / half_width) * (t / half_width);
      const double x = std::numbers::pi * cutoff * t;
      const double sinc = std::abs(x) < 1e-9 ? 1 : std::sin(x) / x;
      phase_filter[k] = edge <= 0 ? 0 : sinc * BesselI0(kBeta * std::sqrt(edge)) * norm;
      sum += phase_filter[k];
    }
    for (int32_t k = 0; k < taps_; ++k) {
      filters_[phase * taps_ + k] = static_cast<float>(phase_filter[k] / sum);
    }
  }
}

int64_t Resampler::NumOutputs(int64_t num_inputs) const {
  return (num_inputs * up_ + down_ - 1) / down_;
}

std::vector<float> Resampler::Run(absl::Span<const float> samples) const {
  if (up_ == down_) return {samples.begin(), samples.end()};
  const int64_t n = static_cast<int64_t>(samples.size());
  // Silence around the clip, so that every filter sees all its taps.
  std::vector<float> padded(n + 2 * int64_t{taps_}, 0.0f);
  std::copy(samples.begin(), samples.end(), padded.begin() + reach_);
  std::vector<float> out(NumOutputs(n));
  int64_t position = 0, phase = 0;
  for (float& value : out) {
    value = Dot(&padded[position], &filters_[phase * taps_], taps_);
    phase += down_;
    position += phase / up_;
    phase %= up_;
  }
  return out;
}

}  // namespace omni::dataloader
