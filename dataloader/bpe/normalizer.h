// NFC exactly as the reference does it (unicode.h says why its version matters).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace omni::dataloader {

class NfcNormalizer {
 public:
  NfcNormalizer();

  // False if the well-formed `text` is its own NFC for sure: it holds nothing that may be
  // reordered, composed or replaced. One pass over the code points that are not ASCII.
  bool MayChange(absl::string_view text) const;
  // Of well-formed text.
  std::string Normalize(absl::string_view text) const;

 private:
  std::vector<bool> may_change_;  // [code points]: marks, second parts of compositions, others
};

}  // namespace omni::dataloader
