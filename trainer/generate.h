// Continuing a prompt token by token, with a key-value cache.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/types/span.h"
#include "runtime/device/exec_context.h"
#include "trainer/assemble.h"

namespace omni::trainer {

struct SamplingOptions {
  double temperature = 0.0;  // 0: greedy, the most likely token, ties to the lowest id
  int32_t top_k = 0;         // only the k most likely; 0: all
  double top_p = 1.0;        // only the most likely that together reach this (Holtzman et al. 2020)
  uint64_t seed = 0;
};

// One token of the distribution softmax(logits / temperature), restricted as the options say;
// top_k first. `draw`: which draw of the seed it is, so that a sequence is a function of the seed.
int32_t SampleToken(absl::Span<const float> logits, const SamplingOptions& options, int64_t draw);

struct GenerateOptions {
  int64_t max_tokens = 256;
  std::vector<int32_t> stop_tokens;  // end the answer; not part of it
  SamplingOptions sampling;
  // Told of each token as it comes; may be null.
  std::function<void(int32_t token)> on_token;
};

// The answer to the prompt: one sequence with its media, its last token text. Positions go on from
// the last one, by one a token on every axis.
std::vector<int32_t> Generate(Device& device, Stream& stream, const MultimodalModel& model,
                              const parallel::TokenPack& prompt, const MediaPacks& media,
                              const GenerateOptions& options);

}  // namespace omni::trainer
