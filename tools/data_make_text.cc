#include "tools/data_make_text.h"

#include <algorithm>
#include <array>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "dataloader/sentencepiece_model.h"

namespace omni::tools {
namespace {

constexpr int kLargestSum = 20;
constexpr std::array<const char*, 21> kNumberWords = {
    "zero",     "one",     "two",     "three",     "four",     "five",     "six",
    "seven",    "eight",   "nine",    "ten",       "eleven",   "twelve",   "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"};

// Of the pairs a < b with one sum, every third (the last ones) is asked as b plus a only in
// held-out; sums 1 and 2 have one pair each and stay in training both ways.
bool IsHeldout(int a, int b) {
  const int sum = a + b;
  return sum >= 3 && a > b && b % 3 == (sum / 2) % 3;
}

// Lines for the tokenizer to merge: the answers alone many times, so that each is one piece, and
// then text as the template will show it.
std::vector<std::string> Corpus() {
  std::vector<std::string> lines;
  for (int i = 0; i < 60; ++i) {
    for (const absl::string_view word : kWords) lines.emplace_back(word);
    for (const absl::string_view word : kColours) lines.emplace_back(word);
    for (const char* role : {"system", "user", "assistant"}) lines.emplace_back(role);
  }
  for (int i = 0; i < 20; ++i) {
    for (const Question& question : {kNumber, kWord, kSpoken, kDirection, kColour}) {
      lines.emplace_back(question.text);
    }
  }
  for (const Sum& sum : Sums(Split::kTrain)) lines.push_back(sum.Text());
  for (const std::string& document : Documents()) lines.push_back(document);
  for (int number = 0; number < kNumbers; ++number) lines.push_back(NumberText(number));
  // Every printable character once, so that none falls back to bytes.
  for (char c = '!'; c <= '~'; ++c) lines.emplace_back(1, c);
  return lines;
}

}  // namespace

std::string Sum::Text() const { return absl::StrCat("What is ", a, " plus ", b, "?"); }
std::string Sum::AnswerText() const { return absl::StrCat(a + b); }

std::vector<Sum> Sums(Split split) {
  std::vector<Sum> sums;
  for (int sum = 0; sum <= kLargestSum; ++sum) {
    for (int a = 0; a <= sum; ++a) {
      if (IsHeldout(a, sum - a) == (split == Split::kHeldout)) sums.push_back({a, sum - a});
    }
  }
  return sums;
}

std::vector<std::string> Documents() {
  std::vector<std::string> documents;
  for (int n = 1; n < kLargestSum; ++n) {
    documents.push_back(absl::StrCat("The number ", kNumberWords[n], " is written ", n,
                                     ". Before it comes ", kNumberWords[n - 1],
                                     " and after it comes ", kNumberWords[n + 1], "."));
    documents.push_back(absl::StrCat("Counting on from ", kNumberWords[n], ": ",
                                     kNumberWords[n + 1], ", then ",
                                     kNumberWords[std::min(n + 2, kLargestSum)], "."));
  }
  const std::array<const char*, 6> things = {"The grass is green and the snow is white.",
                                             "The sky is blue and the sun is yellow.",
                                             "A plum is purple, a tomato is red.",
                                             "The house by the tree has a red door.",
                                             "The cat sleeps while the happy dog runs home.",
                                             "Stop at the red light and go when it is green."};
  for (const char* thing : things) documents.emplace_back(thing);
  for (const absl::string_view colour : kColours) {
    documents.push_back(
        absl::StrCat("A ", colour, " shape moves over a grey ground. Its colour is ", colour, "."));
    for (const absl::string_view direction : kDirections) {
      documents.push_back(
          absl::StrCat("The ", colour, " shape moves ", direction, " from one frame to the next."));
    }
  }
  documents.emplace_back("The opposite of left is right, and the opposite of up is down.");
  documents.emplace_back("The opposite of yes is no, of on is off, of stop is go.");
  return documents;
}

const std::vector<std::string>& SpecialTokens() {
  static const std::vector<std::string> tokens = {
      "<|im_start|>",  "<|im_end|>",      "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
      "<|video_pad|>", "<|audio_start|>", "<|audio_end|>",    "<|audio_pad|>"};
  return tokens;
}

absl::StatusOr<std::string> TrainTokenizer() {
  std::string model;
  const std::string error = dataloader::TrainSentencePiece(
      {{"model_type", "bpe"},
       {"vocab_size", absl::StrCat(kVocabulary)},
       {"byte_fallback", "true"},
       {"split_digits", "true"},
       // What goes in comes out: no normalisation, no spaces added or lost.
       {"normalization_rule_name", "identity"},
       {"remove_extra_whitespaces", "false"},
       {"add_dummy_prefix", "false"},
       {"character_coverage", "1.0"},
       {"unk_id", "0"},
       {"bos_id", "-1"},
       {"eos_id", "-1"},
       {"pad_id", "-1"},
       {"num_threads", "1"},
       {"minloglevel", "2"},
       {"user_defined_symbols", absl::StrJoin(SpecialTokens(), ",")}},
      Corpus(), &model);
  if (!error.empty()) {
    return absl::InternalError(absl::StrCat("training the tokenizer: ", error));
  }
  return model;
}

}  // namespace omni::tools
