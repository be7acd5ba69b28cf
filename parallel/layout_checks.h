// Whether the degrees of a `parallel:` section fit the ranks and the model. What does not is named
// by its key, with what was found and the nearest values that would do:
//
//   recipe.yaml:9: parallel.tensor: found 3, which does not divide model.decoder.heads (8); 2 and 4
//   fit
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "parallel/parallel_config.h"

namespace omni::parallel {

// InvalidArgument; each as far as those before it passed.
absl::Status CheckRanks(const ConfigNode& section, const ParallelConfig& config);
absl::Status CheckDecoderFits(const ConfigNode& section, const ParallelConfig& config,
                              const DecoderShape& decoder);
absl::Status CheckSchedule(const ConfigNode& section, const ParallelConfig& config);
absl::Status CheckChunks(const ConfigNode& section, const ParallelConfig& config, int32_t layers);
// Names there are, and degrees.
absl::Status CheckEncoders(const ConfigNode& section, const ParallelConfig& config,
                           const std::vector<std::string>& encoders);

}  // namespace omni::parallel
