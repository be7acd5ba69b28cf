// Reads what tools/golden/bpe.py wrote; the formats are described there.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace omni::dataloader {

class GoldenFile {
 public:
  // A file under tests/golden/tokenizers, unpacked. Stops the test program if there is none.
  explicit GoldenFile(const std::string& name);

  uint64_t Number();
  std::vector<int32_t> Numbers();
  std::string String();
  bool AtEnd() const { return at_ == bytes_.size(); }

 private:
  std::string bytes_;
  size_t at_ = 0;
};

std::string GoldenPath(const std::string& name);
std::string ReadGolden(const std::string& name);
std::vector<std::string> GoldenStrings();

}  // namespace omni::dataloader
