// Bytes as the decoders' libraries take them.
#pragma once

#include <cstdint>

#include "absl/strings/string_view.h"

namespace omni::dataloader {

inline const uint8_t* Data(absl::string_view bytes) {
  return reinterpret_cast<const uint8_t*>(bytes.data());
}

}  // namespace omni::dataloader
