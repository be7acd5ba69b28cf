// A small tokenizer trained on the spot: byte fallback, no prefix, the symbols of the template.
#pragma once

#include <string>
#include <vector>

namespace omni::dataloader {

// A serialised SentencePiece model with `symbols` as user-defined symbols. Std types only, as
// dataloader/sentencepiece_model.h.
std::string TrainTestModel(const std::vector<std::string>& symbols);

}  // namespace omni::dataloader
