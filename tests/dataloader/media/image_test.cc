#include "dataloader/media/image.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <sstream>

#include "dataloader/media/encode.h"
#include "tests/dataloader/media/golden_inputs.h"

namespace omni::dataloader {
namespace {

using ::testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

double MeanDifference(const Image& a, const Image& b) {
  OMNI_CHECK_EQ(a.rgb.size(), b.rgb.size());
  double sum = 0;
  for (size_t i = 0; i < a.rgb.size(); ++i) sum += std::abs(a.rgb[i] - b.rgb[i]);
  return sum / static_cast<double>(a.rgb.size());
}

Image Smooth(int32_t height, int32_t width) {
  Image image{{height, width}, {}};
  for (int32_t y = 0; y < height; ++y) {
    for (int32_t x = 0; x < width; ++x) {
      image.rgb.push_back(static_cast<uint8_t>(255 * y / height));
      image.rgb.push_back(static_cast<uint8_t>(255 * x / width));
      image.rgb.push_back(128);
    }
  }
  return image;
}

struct ResizeCase {
  int32_t height, width, out_height, out_width;
};
class ResizeTest : public testing::TestWithParam<ResizeCase> {};

TEST_P(ResizeTest, DiffersFromPillowByAtMostOne) {
  const ResizeCase& c = GetParam();
  static constexpr ResizeCase kAll[] = {{64, 48, 28, 28},  {37, 53, 56, 84},  {101, 67, 28, 56},
                                        {1, 1, 28, 28},    {200, 30, 28, 28}, {56, 100, 56, 28},
                                        {100, 56, 28, 56}, {3, 400, 28, 56}};
  uint32_t seed = 1;
  for (const ResizeCase& other : kAll) {
    if (other.height == c.height && other.width == c.width) break;
    ++seed;
  }
  std::ostringstream name;
  name << "resize_" << c.height << "x" << c.width << "_" << c.out_height << "x" << c.out_width
       << ".u8";
  const std::string golden = ReadGolden(name.str());
  const Image out =
      ResizeBicubic(GoldenPicture(c.height, c.width, seed), {c.out_height, c.out_width});
  ASSERT_EQ(out.rgb.size(), golden.size());
  int largest = 0, different = 0;
  for (size_t i = 0; i < golden.size(); ++i) {
    const int difference = std::abs(out.rgb[i] - static_cast<uint8_t>(golden[i]));
    largest = std::max(largest, difference);
    different += difference != 0;
  }
  EXPECT_LE(largest, 1);
  EXPECT_LT(different, static_cast<int>(golden.size()) / 20);
}

INSTANTIATE_TEST_SUITE_P(Sizes, ResizeTest,
                         testing::Values(ResizeCase{64, 48, 28, 28}, ResizeCase{37, 53, 56, 84},
                                         ResizeCase{101, 67, 28, 56}, ResizeCase{1, 1, 28, 28},
                                         ResizeCase{200, 30, 28, 28}, ResizeCase{56, 100, 56, 28},
                                         ResizeCase{100, 56, 28, 56}, ResizeCase{3, 400, 28, 56}),
                         [](const testing::TestParamInfo<ResizeCase>& info) {
                           std::ostringstream name;
                           name << "From" << info.param.height << "x" << info.param.width << "To"
                                << info.param.out_height << "x" << info.param.out_width;
                           return name.str();
                         });

TEST(ResizeBicubicTest, HasTorchvisionsBytes) {
  std::istringstream sizes(ReadGolden("resize_torchvision.txt"));
  const std::string golden = ReadGolden("resize_torchvision.u8");
  size_t at = 0;
  uint32_t seed = 40;
  for (ResizeCase c; sizes >> c.height >> c.width >> c.out_height >> c.out_width; ++seed) {
    const Image out = ResizeBicubic(GoldenPicture(c.height, c.width, seed),
                                    {c.out_height, c.out_width}, ResizeMode::kTorchvision);
    ASSERT_LE(at + out.rgb.size(), golden.size());
    EXPECT_EQ(absl::string_view(reinterpret_cast<const char*>(out.rgb.data()), out.rgb.size()),
              absl::string_view(golden).substr(at, out.rgb.size()))
        << c.height << " x " << c.width << " to " << c.out_height << " x " << c.out_width;
    at += out.rgb.size();
  }
  EXPECT_EQ(at, golden.size());
  EXPECT_EQ(seed, 40u + 18);
}

// Weights are rounded one by one and may not add up to one.
TEST(ResizeBicubicTest, FlatPicturesStayFlat) {
  for (const int value : {0, 1, 127, 254, 255}) {
    for (const ImageSize from : {ImageSize{97, 61}, ImageSize{2000, 3}}) {
      Image image{from,
                  std::vector<uint8_t>(from.height * from.width * 3, static_cast<uint8_t>(value))};
      for (const ResizeMode mode : {ResizeMode::kFast, ResizeMode::kTorchvision}) {
        for (const uint8_t byte : ResizeBicubic(image, {28, 140}, mode).rgb) ASSERT_EQ(byte, value);
      }
    }
  }
}

TEST(SmartResizeTest, AgreesWithQwen) {
  std::istringstream lines(ReadGolden("smart_resize.txt"));
  int64_t h, w, lo, hi, out_h, out_w, count = 0;
  while (lines >> h >> w >> lo >> hi >> out_h >> out_w) {
    absl::StatusOr<ImageSize> size =
        SmartResize({static_cast<int32_t>(h), static_cast<int32_t>(w)},
                    {.factor = 28, .min_pixels = lo, .max_pixels = hi});
    ASSERT_TRUE(size.ok()) << size.status();
    EXPECT_EQ(size->height, out_h) << h << " x " << w << " in [" << lo << ", " << hi << "]";
    EXPECT_EQ(size->width, out_w) << h << " x " << w << " in [" << lo << ", " << hi << "]";
    ++count;
  }
  EXPECT_EQ(count, 45);
}

TEST(SmartResizeTest, RefusesStripsAndNothing) {
  EXPECT_TRUE(absl::IsInvalidArgument(SmartResize({1, 201}, {}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(SmartResize({0, 10}, {}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      SmartResize({10, 10}, {.factor = 28, .min_pixels = 100, .max_pixels = 10}).status()));
}

TEST(DecodeImageTest, LosslessFormatsComeBackExactly) {
  for (const auto& [h, w] : {std::pair{1, 1}, {7, 5}, {33, 64}}) {
    const Image image = GoldenPicture(h, w, 3);
    for (const absl::StatusOr<std::string>& bytes :
         {EncodePng(image), EncodeWebp(image, /*quality=*/100)}) {
      ASSERT_TRUE(bytes.ok()) << bytes.status();
      absl::StatusOr<ImageSize> size = ProbeImage(*bytes);
      ASSERT_TRUE(size.ok()) << size.status();
      EXPECT_EQ(*size, image.size);
      absl::StatusOr<Image> back = DecodeImage(*bytes);
      ASSERT_TRUE(back.ok()) << back.status();
      EXPECT_EQ(back->size, image.size);
      EXPECT_EQ(back->rgb, image.rgb);
    }
  }
}

TEST(DecodeImageTest, AlphaIsDroppedOrOverWhite) {
  const Image image = GoldenPicture(7, 9, 5);
  for (const char* name : {"alpha_7x9.png", "alpha_7x9.webp", "grey_alpha_7x9.png"}) {
    const bool is_grey = name[0] == 'g';
    const std::string bytes = ReadGolden(name);
    const Image dropped = DecodeImage(bytes, {}, AlphaMode::kDrop).value();
    const Image over_white = DecodeImage(bytes).value();
    for (int i = 0; i < 7 * 9 * 3; ++i) {
      const int pixel = i / 3, source = is_grey ? image.rgb[3 * pixel] : image.rgb[i];
      const double alpha = ((pixel % 9) * 31 + (pixel / 9) * 40) % 256 / 255.0;
      EXPECT_EQ(dropped.rgb[i], source) << name << " " << i;
      EXPECT_NEAR(over_white.rgb[i], alpha * source + (1 - alpha) * 255, 1) << name << " " << i;
    }
  }
}

TEST(DecodeImageTest, LossyFormatsComeBackNearly) {
  const Image image = Smooth(61, 83);
  for (const absl::StatusOr<std::string>& bytes : {EncodeJpeg(image, 95), EncodeWebp(image, 90)}) {
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    absl::StatusOr<Image> back = DecodeImage(*bytes);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_LT(MeanDifference(image, *back), 3);
  }
}

TEST(DecodeImageTest, ScaledJpegCoversWhatIsWanted) {
  const Image image = Smooth(401, 300);
  const std::string bytes = EncodeJpeg(image, 95).value();
  absl::StatusOr<Image> half = DecodeImage(bytes, {200, 150});
  ASSERT_TRUE(half.ok()) << half.status();
  EXPECT_EQ(half->size, (ImageSize{201, 150}));
  EXPECT_LT(MeanDifference(ResizeBicubic(*half, {200, 150}), ResizeBicubic(image, {200, 150})), 2);
  EXPECT_EQ(DecodeImage(bytes, {202, 150})->size, image.size);
  EXPECT_EQ(DecodeImage(bytes, {20, 20})->size, (ImageSize{51, 38}));
}

TEST(DecodeImageTest, TruncatedFilesAreDataLoss) {
  const Image image = GoldenPicture(64, 64, 5);
  for (const std::string& whole :
       {EncodeJpeg(image).value(), EncodePng(image).value(), EncodeWebp(image).value()}) {
    for (const size_t keep : {size_t{20}, whole.size() / 2, whole.size() - 40}) {
      absl::StatusOr<Image> cut = DecodeImage(whole.substr(0, keep));
      EXPECT_TRUE(absl::IsDataLoss(cut.status()))
          << Name(SniffFormat(whole)) << " cut to " << keep << ": " << cut.status();
    }
  }
}

TEST(DecodeImageTest, DamagedBytesAreDataLossOrSomePicture) {
  Lcg lcg(11);
  const Image image = GoldenPicture(40, 40, 5);
  for (const std::string& whole :
       {EncodeJpeg(image).value(), EncodePng(image).value(), EncodeWebp(image).value()}) {
    for (int round = 0; round < 200; ++round) {
      std::string bytes = whole;
      bytes[lcg.Next() % bytes.size()] = static_cast<char>(lcg.Next());
      absl::StatusOr<Image> damaged = DecodeImage(bytes);
      EXPECT_TRUE(damaged.ok() || absl::IsDataLoss(damaged.status())) << damaged.status();
    }
  }
}

TEST(DecodeImageTest, SaysWhatWasFoundInstead) {
  EXPECT_THAT(Message(DecodeImage("").status()), HasSubstr("an empty file"));
  EXPECT_THAT(Message(DecodeImage("GIF89a.....").status()), HasSubstr("a GIF picture"));
  EXPECT_THAT(Message(DecodeImage("<html></html>").status()), HasSubstr("markup text"));
  EXPECT_THAT(Message(DecodeImage(absl::string_view("\0\1\2\3", 4)).status()),
              HasSubstr("bytes 00010203"));
  const std::string wav = EncodeAudio(std::vector<float>(100, 0.1f), 16000).value();
  EXPECT_THAT(Message(DecodeImage(wav).status()), HasSubstr("found WAV, expected a picture"));
}

TEST(DecodeImageTest, AbsurdSizesAreRefusedBeforeMemoryIsTaken) {
  // A PNG's size stands at bytes 16 to 23, followed by a checksum of its header chunk.
  const std::string whole = EncodePng(GoldenPicture(4, 4, 1)).value();
  const auto with_header = [&](const std::string& header, const std::string& crc) {
    return whole.substr(0, 16) + header + whole.substr(24, 5) + crc + whole.substr(33);
  };
  const std::string side = std::string("\x00\x01\x86\xa0", 4);  // 100000
  // CRC-32 of "IHDR", 100000, 100000, 8, 2, 0, 0, 0.
  const auto crc32 = [](const std::string& bytes) {
    uint32_t crc = ~0u;
    for (const char c : bytes) {
      crc ^= static_cast<uint8_t>(c);
      for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? (crc >> 1) ^ 0xedb88320u : crc >> 1;
    }
    crc = ~crc;
    std::string out;
    for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<char>(crc >> shift));
    return out;
  };
  const std::string huge =
      with_header(side + side, crc32("IHDR" + side + side + whole.substr(24, 5)));
  EXPECT_THAT(Message(DecodeImage(huge).status()),
              HasSubstr("PNG header says 100000 x 100000 pixels; the limit is"));
  EXPECT_TRUE(absl::IsDataLoss(ProbeImage(huge).status()));
  // Within the limits, but the file can't hold it.
  const std::string large = std::string("\x00\x00\x20\x00", 4);  // 8192
  const std::string hollow =
      with_header(large + large, crc32("IHDR" + large + large + whole.substr(24, 5)));
  EXPECT_THAT(Message(DecodeImage(hollow).status()), HasSubstr("can't hold the 8192 x 8192"));
  // A JPEG's in its SOF0 segment (ff c0).
  std::string jpeg = EncodeJpeg(GoldenPicture(16, 16, 1)).value();
  const size_t sof = jpeg.find("\xff\xc0");
  ASSERT_NE(sof, std::string::npos);
  jpeg.replace(sof + 5, 4, "\xfd\xe8\xfd\xe8");
  EXPECT_THAT(std::string(DecodeImage(jpeg).status().message()),
              HasSubstr("JPEG header says 65000 x 65000 pixels"));
}

TEST(EncodeTest, RefusesWhatCanNotBe) {
  EXPECT_TRUE(absl::IsInvalidArgument(EncodePng(Image{{2, 2}, {1, 2, 3}}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(EncodeJpeg(GoldenPicture(2, 2, 1), 0).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(EncodeWebp(Image{}).status()));
}

}  // namespace
}  // namespace omni::dataloader
