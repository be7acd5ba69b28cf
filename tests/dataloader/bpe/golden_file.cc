#include "tests/dataloader/bpe/golden_file.h"

#include <zstd.h>

#include <fstream>
#include <sstream>

#include "runtime/base/check.h"

namespace omni::dataloader {

std::string GoldenPath(const std::string& name) {
  return std::string(OMNI_SOURCE_DIR) + "/tests/golden/tokenizers/" + name;
}

std::string ReadGolden(const std::string& name) {
  std::ifstream file(GoldenPath(name), std::ios::binary);
  OMNI_CHECK(file.good());
  std::stringstream content;
  content << file.rdbuf();
  return content.str();
}

GoldenFile::GoldenFile(const std::string& name) {
  const std::string packed = ReadGolden(name);
  const auto size = ZSTD_getFrameContentSize(packed.data(), packed.size());
  OMNI_CHECK_LT(size, uint64_t{1} << 30);
  bytes_.resize(size);
  OMNI_CHECK_EQ(ZSTD_decompress(bytes_.data(), bytes_.size(), packed.data(), packed.size()), size);
}

uint64_t GoldenFile::Number() {
  uint64_t value = 0;
  for (int shift = 0;; shift += 7) {
    OMNI_CHECK(at_ < bytes_.size() && shift < 63);
    const auto byte = static_cast<unsigned char>(bytes_[at_++]);
    value |= static_cast<uint64_t>(byte & 0x7F) << shift;
    if (byte < 0x80) return value;
  }
}

std::vector<int32_t> GoldenFile::Numbers() {
  std::vector<int32_t> values(Number());
  for (int32_t& value : values) value = static_cast<int32_t>(Number());
  return values;
}

std::string GoldenFile::String() {
  const size_t size = Number();
  OMNI_CHECK_LE(at_ + size, bytes_.size());
  at_ += size;
  return bytes_.substr(at_ - size, size);
}

std::vector<std::string> GoldenStrings() {
  GoldenFile file("strings.zst");
  std::vector<std::string> strings(file.Number());
  for (std::string& text : strings) text = file.String();
  OMNI_CHECK(file.AtEnd());
  return strings;
}

}  // namespace omni::dataloader
