// The text of the quickstart: sums, documents, and the tokenizer trained on all of it.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tools/data_make_tasks.h"

namespace omni::tools {

// "What is 3 plus 8?" with "11". Training asks every pair in one order at least; held-out asks
// some pairs a < b as b plus a, which training asks only as a plus b. Sums are 0 .. 20.
struct Sum {
  int a, b;
  std::string Text() const;
  std::string AnswerText() const;
};
std::vector<Sum> Sums(Split split);

// Plain documents about the same little world: number words, colours, directions.
std::vector<std::string> Documents();

// The control symbols of the chat template; each is one token.
const std::vector<std::string>& SpecialTokens();

inline constexpr int kVocabulary = 512;  // ids, all of them used by the tokenizer

// A serialised SentencePiece model (BPE, digits apart, bytes for what it does not know) that
// depends on nothing but this program's text. Every answer word is one token, every digit one.
absl::StatusOr<std::string> TrainTokenizer();

}  // namespace omni::tools
