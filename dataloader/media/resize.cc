// Bicubic resizing with antialiasing, in the arithmetic in which torchvision resizes uint8 tensors
// on the CPU, as the fast image processors of transformers do: weights normalised in double, then
// rounded to 16 bits with as many fraction bits as the largest allows (14 when enlarging, up to 22
// when a picture is reduced); a horizontal pass into bytes, then a vertical one. Each pass sums in
// 32 bits, adds a half and shifts. Sixteen bits mean that one vpmaddwd does two taps.
//
// Pillow, where the method comes from, has 22 bits always, and reduces the height first where that
// is cheaper.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "dataloader/media/image_codecs.h"
#include "runtime/base/check.h"

namespace omni::dataloader {
namespace {

double Cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

// For each output position the input range and its weights, padded with zeros to `stride`.
struct Taps {
  int32_t stride = 0;  // a multiple of 4
  int32_t shift = 0;   // fraction bits of the weights
  std::vector<int32_t> first, count;
  std::vector<int16_t> weights;  // [output, stride]
};

Taps MakeTaps(int32_t in, int32_t out) {
  const double scale = static_cast<double>(in) / out;
  const double filter_scale = std::max(scale, 1.0);
  const double inverse = 1.0 / filter_scale;
  const double support = 2.0 * filter_scale;
  Taps taps;
  taps.stride = (static_cast<int32_t>(std::ceil(support)) * 2 + 1 + 3) / 4 * 4;
  taps.first.resize(out);
  taps.count.resize(out);
  taps.weights.assign(static_cast<size_t>(out) * taps.stride, 0);
  std::vector<double> exact(static_cast<size_t>(out) * taps.stride, 0.0);
  double largest = 0;
  for (int32_t i = 0; i < out; ++i) {
    const double center = (i + 0.5) * scale;
    const int32_t first = std::max(static_cast<int32_t>(center - support + 0.5), 0);
    const int32_t last = std::min(static_cast<int32_t>(center + support + 0.5), in);
    double* w = &exact[static_cast<size_t>(i) * taps.stride];
    double sum = 0;
    for (int32_t x = first; x < last; ++x) {
      sum += w[x - first] = Cubic((x - center + 0.5) * inverse);
    }
    for (int32_t x = 0; x < last - first; ++x) {
      if (sum != 0) w[x] /= sum;
      largest = std::max(largest, w[x]);
    }
    taps.first[i] = first;
    taps.count[i] = last - first;
  }
  // At most 22: the sums, below 1.25 * 255 * 2^22 and a half, stay in 32 bits.
  while (taps.shift < 22 && 0.5 + largest * (2 << taps.shift) < 32768) ++taps.shift;
  const double one = 1 << taps.shift;
  for (size_t i = 0; i < exact.size(); ++i) {
    taps.weights[i] = static_cast<int16_t>(std::round(exact[i] * one));
  }
  return taps;
}

// Four neighbouring RGB pixels of a row, as 16-bit pairs: lane 0 holds pixels 0 and 1 as r0 r1
// g0 g1 b0 b1 0 0, lane 1 pixels 2 and 3.
inline __m256i LoadPixelPairs(const uint8_t* pixels) {
  const __m256i spread =
      _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, 6, -1, 9, -1, 7,
                       -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(pixels));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(raw), spread);
}

inline void StoreRgb(uint8_t* out, uint32_t rgb) {
  const uint16_t rg = static_cast<uint16_t>(rgb);
  std::memcpy(out, &rg, 2);
  out[2] = static_cast<uint8_t>(rgb >> 16);
}

// kRows rows of `in_row` bytes into as many of `out_row` bytes. Reads up to 15 bytes past the last
// pixel it weighs, always inside the picture or its slack.
template <int kRows>
void HorizontalRows(const uint8_t* in, int64_t in_row, const Taps& taps, uint8_t* out,
                    int64_t out_row) {
  static_assert(kRows == 1 || kRows == 4);
  const int32_t num_out = static_cast<int32_t>(taps.first.size());
  // Half of one unit, to round; in the lower lane only, since the lanes are added.
  const __m256i half = _mm256_zextsi128_si256(_mm_set1_epi32(1 << (taps.shift - 1)));
  const __m128i shift = _mm_cvtsi32_si128(taps.shift);
  const __m256i spread_weights = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
  for (int32_t i = 0; i < num_out; ++i) {
    const uint8_t* source = in + 3 * int64_t{taps.first[i]};
    const int16_t* weights = &taps.weights[static_cast<size_t>(i) * taps.stride];
    __m256i sums[4] = {half, half, half, half};
    for (int32_t x = 0; x < taps.count[i]; x += 4) {
      const __m128i four = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(weights + x));
      const __m256i w = _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(four), spread_weights);
      for (int r = 0; r < kRows; ++r) {
        const __m256i pixels = LoadPixelPairs(source + r * in_row + 3 * x);
        sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(pixels, w));
      }
    }
    // Lanes added: rows 0 | 1 and 2 | 3; then bytes: r0 r2 in the lower lane, r1 r3 in the upper.
    const auto add_lanes = [&](__m256i a, __m256i b) {
      return _mm256_sra_epi32(_mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20),
                                               _mm256_permute2x128_si256(a, b, 0x31)),
                              shift);
    };
    __m256i words = _mm256_packs_epi32(add_lanes(sums[0], sums[1]), add_lanes(sums[2], sums[3]));
    words = _mm256_packus_epi16(words, words);
    const uint64_t rows_02 =
        static_cast<uint64_t>(_mm_cvtsi128_si64(_mm256_castsi256_si128(words)));
    const uint64_t rows_13 =
        static_cast<uint64_t>(_mm_cvtsi128_si64(_mm256_extracti128_si256(words, 1)));
    uint8_t* to = out + 3 * int64_t{i};
    const auto store = [&](int r, uint32_t rgb) {
      // Four bytes where the next pixel overwrites the fourth.
      if (i + 1 < num_out) {
        std::memcpy(to + r * out_row, &rgb, 4);
      } else {
        StoreRgb(to + r * out_row, rgb);
      }
    };
    store(0, static_cast<uint32_t>(rows_02));
    if constexpr (kRows == 4) {
      store(1, static_cast<uint32_t>(rows_13));
      store(2, static_cast<uint32_t>(rows_02 >> 32));
      store(3, static_cast<uint32_t>(rows_13 >> 32));
    }
  }
}

// One output row: the weighted sum of `count` rows of `row_bytes`. Works on 16 bytes at a time,
// so rows have slack behind them.
void VerticalRow(const uint8_t* in, int64_t row_bytes, const int16_t* weights, int32_t count,
                 int32_t shift_bits, uint8_t* out) {
  const __m256i half = _mm256_set1_epi32(1 << (shift_bits - 1));
  const __m128i shift = _mm_cvtsi32_si128(shift_bits);
  const __m256i zero = _mm256_setzero_si256();
  for (int64_t at = 0; at < row_bytes; at += 16) {
    __m256i low = half, high = half;
    for (int32_t k = 0; k < count; k += 2) {
      const uint8_t* p = in + k * row_bytes + at;
      const __m256i a = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
      // A missing last row has weight zero; any readable bytes will do for it.
      const uint8_t* q = k + 1 < count ? p + row_bytes : p;
      const __m256i b = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q)));
      int32_t pair;
      std::memcpy(&pair, weights + k, 4);
      const __m256i w = _mm256_set1_epi32(pair);
      low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), w));
      high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), w));
    }
    const __m256i words =
        _mm256_packs_epi32(_mm256_sra_epi32(low, shift), _mm256_sra_epi32(high, shift));
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi16(words, zero), 0x08);
    const __m128i result = _mm256_castsi256_si128(packed);
    if (at + 16 <= row_bytes) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + at), result);
    } else {
      alignas(16) uint8_t tail[16];
      _mm_store_si128(reinterpret_cast<__m128i*>(tail), result);
      std::memcpy(out + at, tail, row_bytes - at);
    }
  }
}

void Horizontal(const RgbBuffer& in, int32_t width, uint8_t* out) {
  const Taps taps = MakeTaps(in.size.width, width);
  const int64_t in_row = int64_t{in.size.width} * 3, out_row = int64_t{width} * 3;
  int32_t y = 0;
  for (; y + 4 <= in.size.height; y += 4) {
    HorizontalRows<4>(in.data.get() + y * in_row, in_row, taps, out + y * out_row, out_row);
  }
  for (; y < in.size.height; ++y) {
    HorizontalRows<1>(in.data.get() + y * in_row, in_row, taps, out + y * out_row, out_row);
  }
}

void Vertical(const RgbBuffer& in, int32_t height, uint8_t* out) {
  const Taps taps = MakeTaps(in.size.height, height);
  const int64_t row = int64_t{in.size.width} * 3;
  for (int32_t y = 0; y < height; ++y) {
    VerticalRow(in.data.get() + taps.first[y] * row, row,
                &taps.weights[static_cast<size_t>(y) * taps.stride], taps.count[y], taps.shift,
                out + y * row);
  }
}

}  // namespace

void ResizeRgb(const RgbBuffer& source, ImageSize size, ResizeMode mode, uint8_t* out) {
  const ImageSize from = source.size;
  OMNI_CHECK(from.height > 0 && from.width > 0);
  OMNI_CHECK(size.height > 0 && size.width > 0);
  if (from == size) {
    std::memcpy(out, source.data.get(), source.num_bytes());
  } else if (from.height == size.height) {
    Horizontal(source, size.width, out);
  } else if (from.width == size.width) {
    Vertical(source, size.height, out);
  } else if (mode == ResizeMode::kFast &&
             int64_t{from.height} * size.width * 5 >= int64_t{from.width} * size.height * 9) {
    // Much more is lost in height than in width: vertical first, as recent versions of Pillow.
    RgbBuffer between(ImageSize{size.height, from.width});
    Vertical(source, size.height, between.data.get());
    Horizontal(between, size.width, out);
  } else {
    RgbBuffer between(ImageSize{from.height, size.width});
    Horizontal(source, size.width, between.data.get());
    Vertical(between, size.height, out);
  }
}

Image ResizeBicubic(const Image& image, ImageSize size, ResizeMode mode) {
  RgbBuffer source(image.size);
  OMNI_CHECK_EQ(static_cast<int64_t>(image.rgb.size()), source.num_bytes());
  std::memcpy(source.data.get(), image.rgb.data(), image.rgb.size());
  Image out{size, std::vector<uint8_t>(int64_t{size.height} * size.width * 3)};
  ResizeRgb(source, size, mode, out.rgb.data());
  return out;
}

}  // namespace omni::dataloader
