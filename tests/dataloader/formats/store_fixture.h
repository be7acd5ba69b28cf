// A folder of its own for each test, and small samples to put there.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "dataloader/formats/tar_writer.h"
#include "dataloader/media/encode.h"
#include "runtime/base/check.h"

namespace omni::dataloader {

class StoreFixture : public testing::Test {
 protected:
  StoreFixture() {
    std::string pattern = (std::filesystem::temp_directory_path() / "omni_XXXXXX").string();
    OMNI_CHECK(mkdtemp(pattern.data()) != nullptr);
    folder_ = pattern;
  }
  ~StoreFixture() override {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  std::string Path(const std::string& name) const {
    return name.empty() ? folder_ : folder_ + "/" + name;
  }

  std::string WriteTar(const std::string& name,
                       const std::vector<std::pair<std::string, std::string>>& members) const {
    std::unique_ptr<TarWriter> tar = TarWriter::Create(Path(name)).value();
    for (const auto& [member, bytes] : members) OMNI_CHECK_OK(tar->Add(member, bytes));
    OMNI_CHECK_OK(tar->Finish());
    return Path(name);
  }

  static std::string Png(int32_t height, int32_t width) {
    Image image{{height, width}, {}};
    for (int32_t i = 0; i < height * width * 3; ++i) {
      image.rgb.push_back(static_cast<uint8_t>(i * 7 + i / 5 * (i % 11)));
    }
    return EncodePng(image).value();
  }
  static std::string Wav(int64_t samples) {
    return EncodeAudio(std::vector<float>(samples, 0.25f), 16000).value();
  }
  static std::string ImageOnly() { return R"({"content":[{"type":"image","image":"0.png"}]})"; }
  static std::string ImageAndSound() {
    return R"({"messages":[{"role":"user","content":[{"type":"image","image":"0.png"},
               {"type":"audio","audio":"1.wav"},{"type":"text","text":"?"}]},
               {"role":"assistant","content":"47"}]})";
  }

 private:
  std::string folder_;
};

}  // namespace omni::dataloader
