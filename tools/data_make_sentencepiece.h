// SentencePiece's trainer behind a function of standard types: its headers declare a namespace
// absl of their own, so no file can include them and Abseil.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

namespace omni::tools {

// Trains on `lines` with the trainer's `options` (its command line's names). Returns "" and fills
// `model` with the serialised model, or returns what went wrong.
std::string TrainSentencePiece(const std::unordered_map<std::string, std::string>& options,
                               std::vector<std::string> lines, std::string* model);

}  // namespace omni::tools
