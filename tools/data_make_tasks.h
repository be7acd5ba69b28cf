// What the quickstart asks, and the closed sets its answers come from.
#pragma once

#include <array>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace omni::tools {

enum class Split { kTrain, kHeldout };
inline const char* Name(Split split) { return split == Split::kTrain ? "train" : "heldout"; }

// A question has one wording; `name` is the "question" of a sample.
struct Question {
  absl::string_view name, text;
};
inline constexpr Question kNumber = {"number", "What number is shown?"};  // 00 .. 99
inline constexpr Question kWord = {"word", "What word is shown?"};        // kWords
inline constexpr Question kSpoken = {"spoken", "What word is spoken?"};   // kWords
inline constexpr Question kDirection = {"direction", "Which way does it move?"};
inline constexpr Question kColour = {"colour", "What colour is it?"};
inline constexpr absl::string_view kSumName = "sum";  // "What is 3 plus 8?"

inline constexpr int kNumbers = 100;
inline std::string NumberText(int number) { return absl::StrCat(number < 10 ? "0" : "", number); }

inline constexpr std::array<absl::string_view, 20> kWords = {
    "yes", "no",    "up",   "down", "left", "right", "stop", "go",    "on",    "off",
    "red", "green", "blue", "cat",  "dog",  "house", "tree", "happy", "seven", "zero"};
inline constexpr std::array<absl::string_view, 4> kDirections = {"left", "right", "up", "down"};
inline constexpr std::array<absl::string_view, 6> kColours = {"red",    "green",  "blue",
                                                              "yellow", "purple", "white"};

}  // namespace omni::tools
