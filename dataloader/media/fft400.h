// The real Fourier transform of 400 points, four frames at a time.
//
// Double precision: the log of a bin 80 dB under the frame's peak is still to be right to 1e-4,
// which a float transform (1e-7 of the peak) is not. Each SIMD lane is a frame, so the butterflies
// need no shuffles. 400 real points are 200 complex ones (even samples real, odd imaginary),
// transformed by radices 4, 2, 5, 5 (Stockham: no bit reversal), then split.
#pragma once

#include <vector>

namespace omni::dataloader {

class Fft400 {
 public:
  typedef double Lanes __attribute__((vector_size(32)));  // one double of each of four frames
  static constexpr int kPoints = 400;
  static constexpr int kBins = 201;

  Fft400();

  // x[400] -> power[201] = |X|^2. `x` is overwritten.
  void Power(Lanes* x, Lanes* power) const;

 private:
  struct Complex {
    double re, im;
  };
  std::vector<Complex> twiddles_;  // exp(-2 pi i k / 200), k in [0, 200)
  std::vector<Complex> split_;     // exp(-2 pi i k / 400), k in [0, 200]
};

}  // namespace omni::dataloader
