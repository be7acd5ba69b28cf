// A model of ours that started from nothing, described in config.json so that it can be exported.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "trainer/recipe.h"

namespace omni::trainer {

// Writes config.json (and preprocessor_config.json where there is a vision tower) into `folder`, of
// the first family whose model this is: qwen2, qwen3, llama, qwen2_5_omni (its thinker). Beside
// them the tokenizer, and kDataOptionsFile: how the run made its inputs, which no file of Hugging
// Face's says of a SentencePiece model with our template.
// InvalidArgument, with file, line and key: what stands in the way of it.
inline constexpr char kDataOptionsFile[] = "omnitrain.yaml";  // {data: {template: ...}}
absl::Status DescribeModel(const Recipe& recipe, const std::string& folder);

}  // namespace omni::trainer
