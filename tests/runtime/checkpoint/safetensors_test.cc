#include "runtime/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>

namespace omni {
namespace {

using ::testing::HasSubstr;

std::string TempPath(const std::string& name) { return ::testing::TempDir() + "/" + name; }

std::string WithHeader(const std::string& json, int64_t data_bytes) {
  const uint64_t length = json.size();
  std::string file(sizeof(length), '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  return file + json + std::string(data_bytes, 'x');
}

TEST(SafetensorsTest, RoundTripKeepsEveryDtypeAndShape) {
  std::vector<double> f64(6, 0.1);
  std::vector<float> f32 = {1, 2, 3};
  std::vector<BFloat16> bf16(4, BFloat16(1.5f));
  std::vector<int64_t> i64 = {-1};
  std::vector<uint8_t> u8;
  const std::string path = TempPath("round.safetensors");
  const std::vector<std::pair<std::string, TensorView>> tensors = {
      {"a", TensorView::Dense(f64.data(), DType::kFloat64, DeviceKind::kCpu, {2, 3})},
      {"b", TensorView::Dense(f32.data(), DType::kFloat32, DeviceKind::kCpu, {3})},
      {"c", TensorView::Dense(bf16.data(), DType::kBFloat16, DeviceKind::kCpu, {1, 2, 2})},
      {"d", TensorView::Dense(i64.data(), DType::kInt64, DeviceKind::kCpu, {})},
      {"empty", TensorView::Dense(u8.data(), DType::kUInt8, DeviceKind::kCpu, {0, 7})}};
  ASSERT_TRUE(WriteSafetensors(path, tensors, {{"format", "pt"}}).ok());
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->header().metadata.at("format"), "pt");
  for (const auto& [name, view] : tensors) {
    const auto read = (*file)->Get(name);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->dtype, view.dtype);
    EXPECT_EQ(read->shape(), view.shape());
    if (view.num_bytes() > 0) {
      EXPECT_EQ(0, std::memcmp(read->data, view.data, view.num_bytes()));
    }
  }
}

TEST(SafetensorsTest, MissingTensorNamesTheNearest) {
  std::vector<float> x = {1};
  const std::string path = TempPath("near.safetensors");
  ASSERT_TRUE(WriteSafetensors(path, {{{"norm.weight", TensorView::Dense(x.data(), DType::kFloat32,
                                                                         DeviceKind::kCpu, {1})}}})
                  .ok());
  const auto status = (*SafetensorsFile::Open(path))->Get("norm.weights").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"norm.weight\""));
}

struct BadFile {
  const char* name;
  std::string contents;
  const char* message;
};
class BadSafetensorsTest : public ::testing::TestWithParam<BadFile> {};

TEST_P(BadSafetensorsTest, IsRejected) {
  const auto header = ParseSafetensorsHeader(GetParam().contents, GetParam().contents.size());
  ASSERT_FALSE(header.ok());
  EXPECT_THAT(std::string(header.status().message()), HasSubstr(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadSafetensorsTest,
    ::testing::Values(
        BadFile{"Short", "abc", "shorter than"},
        BadFile{"HugeLength", std::string(16, '\xff'), "truncated"},
        BadFile{"NotJson", WithHeader("{nope", 0), "not a JSON object"},
        BadFile{"UnknownDtype",
                WithHeader(R"({"a":{"dtype":"F8","shape":[1],"data_offsets":[0,1]}})", 1),
                "dtype F8"},
        BadFile{"Negative",
                WithHeader(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1),
                "non-negative"},
        BadFile{"WrongSize",
                WithHeader(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4),
                "takes 8 bytes"},
        BadFile{
            "Overflow",
            WithHeader(
                R"({"a":{"dtype":"F32","shape":[4611686018427387904,4611686018427387904],"data_offsets":[0,4]}})",
                4),
            "overflow"},
        BadFile{"Hole", WithHeader(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2),
                "hole or an overlap"},
        BadFile{
            "Overlap",
            WithHeader(
                R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
                3),
            "hole or an overlap"},
        BadFile{"Truncated",
                WithHeader(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})", 4),
                "truncated"},
        BadFile{"Trailing",
                WithHeader(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 4),
                "tensors take 1 bytes"},
        BadFile{"Backwards",
                WithHeader(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[2,1]}})", 2),
                "begin <= end"}),
    [](const auto& info) { return info.param.name; });

TEST(SafetensorsTest, OpeningAFolderOrNothingIsAnError) {
  EXPECT_FALSE(SafetensorsFile::Open(::testing::TempDir()).ok());
  EXPECT_EQ(SafetensorsFile::Open("/no/such").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace omni
