// Pictures of text: 84 x 28, dark on light, FreeType.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/base/rng.h"
#include "tools/data_make_noise.h"
#include "tools/data_make_shard.h"
#include "tools/data_make_tasks.h"

namespace omni::tools {

inline constexpr int kImageWidth = 84, kImageHeight = 28;

// File names below font_dir. Held-out fonts are whole families.
std::vector<std::string> FontFiles(Split split);

// Draws with the fonts of one split. Not thread-safe: FreeType's library is one per maker.
class ImageMaker {
 public:
  // NotFound names the Debian package of a missing font.
  static absl::StatusOr<std::unique_ptr<ImageMaker>> Create(const std::string& font_dir,
                                                            Split split);
  ~ImageMaker();

  // `is_word` chooses the smaller letters. Font, size, place, colours, ground, noise and file
  // format are drawn from `rng`.
  absl::StatusOr<Media> Make(absl::string_view text, bool is_word, CounterRng& rng);

 private:
  struct Impl;
  explicit ImageMaker(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace omni::tools
