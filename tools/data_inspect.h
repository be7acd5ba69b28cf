// `omnitrain data inspect`: one sample as the trainer sees it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace omni::tools {

struct DataInspectOptions {
  std::string recipe;
  std::vector<std::string> overrides;  // key.path=value
  std::string source;  // of data.sources, or with heldout of data.eval; "": the first
  bool heldout = false;
  int64_t index = 0;  // in the source
  std::string out;    // folder for pictures, made if absent; "": none are written
};

// Text for a terminal: where the sample lies, its media with their sizes and rows, every token
// with id, piece, positions (temporal, height, width) and whether it has loss, and the cost in
// tokens, rows and FLOPs. Pictures and clips (frames from left to right), after resizing, and
// log-mels (time to the right, low bands at the bottom) go to `out`/<source>-<index>.<medium>.png,
// taken back out of the packs that the encoders would get. Nothing is augmented. Errors: those of
// the recipe; NotFound for an unknown source (with the nearest) or an index beyond it; DataLoss,
// naming the sample, if it would not be trained on, with the reason.
absl::StatusOr<std::string> InspectSample(const DataInspectOptions& options);

}  // namespace omni::tools
