// `omnitrain generate`: asks a model about a picture, a clip or a sound.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "trainer/generate.h"

namespace omni::tools {

struct GenerateCommand {
  std::string model;         // Hugging Face folder, run directory or checkpoint
  std::string conversation;  // JSON, as training has it, ending with a question; or the parts:
  std::string system, prompt;
  std::vector<std::string> images, audios, videos;  // files, before the prompt's text
  int64_t max_tokens = 256;
  trainer::SamplingOptions sampling;
  std::vector<std::string> overrides;  // key.path=value of the recipe
};

// The answer's text; `on_text` is told of it piece by piece. InvalidArgument if there is neither a
// prompt nor a conversation, or both; else errors of the model and the conversation.
absl::StatusOr<std::string> GenerateAnswer(const GenerateCommand& command,
                                           const std::function<void(const std::string&)>& on_text);

}  // namespace omni::tools
