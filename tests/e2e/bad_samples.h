// Small samples for the tables of bad media and bad shards, and a recipe that trains on them.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "dataloader/media/encode.h"
#include "tests/e2e/bad_input.h"
#include "tests/support/tiny_job.h"

namespace omni::test {

// One lane, so that twelve steps meet every sample of a small source.
inline std::string RecipePath() {
  return WriteInput(
      "recipe.yaml",
      TinyRecipeYaml({.steps = 12, .lanes = 1, .dtype = "fp32", .sources = "[image]"}));
}

// `command` with that recipe, over another source: {"train"}, {"data", "inspect", "--index", "3"}.
inline std::vector<std::string> Over(std::vector<std::string> command, const std::string& source) {
  command.insert(command.begin() + (command[0] == "data" ? 2 : 1), RecipePath());
  command.insert(command.end(), {"--set", "data.sources.0.path=" + source});
  return command;
}

inline dataloader::Image Picture(int32_t height, int32_t width) {
  dataloader::Image image{.size = {height, width}};
  for (int32_t i = 0; i < height * width * 3; ++i) {
    image.rgb.push_back(static_cast<uint8_t>(i * 7 + i / 5 * (i % 11)));
  }
  return image;
}
inline std::string Jpeg() { return dataloader::EncodeJpeg(Picture(56, 84)).value(); }

// A sample with one medium as a line of JSONL.
inline std::string Line(const std::string& kind, const std::string& file) {
  return absl::StrCat(R"({"messages":[{"role":"user","content":[{"type":")", kind, R"(",")", kind,
                      R"(":")", file, R"("},{"type":"text","text":"?"}]},)",
                      R"({"role":"assistant","content":"red"}]})", "\n");
}

// Lines of `text` with all of `parts`.
inline int64_t LinesWith(const std::string& text, const std::vector<std::string>& parts) {
  int64_t count = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    count += std::all_of(parts.begin(), parts.end(),
                         [&](const std::string& part) { return absl::StrContains(line, part); });
  }
  return count;
}

}  // namespace omni::test
