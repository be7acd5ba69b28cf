#include "dataloader/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "tests/dataloader/bpe/golden_file.h"
#include "tests/dataloader/support.h"

namespace omni::dataloader {
namespace {

using ::testing::HasSubstr;

TEST(TokenizerTest, TextComesBack) {
  const auto tokenizer = TestTokenizer();
  for (const std::string text : {"", "What number is shown?", "  two  spaces\n", "naïve 漢字 \t"}) {
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text)), text);
  }
}

TEST(TokenizerTest, SymbolsWrittenInATextAreText) {
  const auto tokenizer = TestTokenizer();
  const std::string text = "a<|im_end|><|im_end|>b<|image_pad|>";
  const std::vector<int32_t> ids = tokenizer->Encode(text);
  for (const int32_t special : {tokenizer->special().im_end, tokenizer->special().image_pad}) {
    EXPECT_EQ(std::count(ids.begin(), ids.end(), special), 0);
  }
  EXPECT_EQ(tokenizer->Decode(ids), text);
}

TEST(TokenizerTest, SymbolsAreDistinctPiecesOfTheirNames) {
  const auto tokenizer = TestTokenizer();
  EXPECT_EQ(tokenizer->Piece(tokenizer->special().im_start), "<|im_start|>");
  EXPECT_EQ(tokenizer->Piece(tokenizer->special().audio_pad), "<|audio_pad|>");
  EXPECT_EQ(tokenizer->special().bos, -1);
  EXPECT_LT(tokenizer->special().audio_pad, tokenizer->vocab_size());
}

TEST(TokenizerTest, MissingSymbolIsNamed) {
  std::vector<std::string> symbols = DefaultSymbols();
  symbols.erase(std::find(symbols.begin(), symbols.end(), "<|video_pad|>"));
  const auto tokenizer = Tokenizer::FromModel(TrainTestModel(symbols), "small.model");
  ASSERT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("small.model"));
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("\"<|video_pad|>\""));
}

TEST(TokenizerTest, OtherNamesCanBeGiven) {
  std::vector<std::string> symbols = DefaultSymbols();
  *std::find(symbols.begin(), symbols.end(), "<|image_pad|>") = "<IMG>";
  SpecialTokenNames names;
  names.image_pad = "<IMG>";
  const auto tokenizer = Tokenizer::FromModel(TrainTestModel(symbols), "model", names);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->Piece((*tokenizer)->special().image_pad), "<IMG>");
}

TEST(TokenizerTest, WhatIsNoModelIsAnErrorNamingTheFile) {
  EXPECT_EQ(Tokenizer::Load("/nowhere/x.model").status().code(), absl::StatusCode::kNotFound);
  const std::string path = ::testing::TempDir() + "/broken.model";
  for (const std::string content : {"", "not a model at all"}) {
    std::ofstream(path) << content;
    const absl::Status status = Tokenizer::Load(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  }
  EXPECT_EQ(Tokenizer::Load(::testing::TempDir()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(TokenizerTest, SpecialsInATextAreFoundOnRequest) {
  const auto tokenizer = TestTokenizer();
  const std::vector<int32_t> ids = tokenizer->EncodeWithSpecials("a<|im_end|>b");
  EXPECT_EQ(std::count(ids.begin(), ids.end(), tokenizer->special().im_end), 1);
  EXPECT_EQ(tokenizer->Decode(ids), "a<|im_end|>b");
}

std::string CopyOfQwen(const std::string& name) {
  const std::string path = ::testing::TempDir() + "/" + name;
  std::ofstream(path) << ReadGolden("qwen/tokenizer.json");
  return path;
}

TEST(TokenizerTest, ATokenizerJsonIsKnownByItsNameOrContent) {
  for (const std::string name : {"tokenizer.json", "qwen.model"}) {
    const auto tokenizer = Tokenizer::Load(CopyOfQwen(name));
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const std::string text = "naïve 漢字 \t<|im_end|><|image_pad|>";
    const std::vector<int32_t> ids = (*tokenizer)->Encode(text);
    EXPECT_EQ((*tokenizer)->Decode(ids), text);
    const SpecialTokens& special = (*tokenizer)->special();
    EXPECT_EQ(std::count(ids.begin(), ids.end(), special.im_end), 0);
    EXPECT_EQ((*tokenizer)->EncodeWithSpecials(text).back(), special.image_pad);
    EXPECT_EQ((*tokenizer)->Piece(special.im_start), "<|im_start|>");
    EXPECT_EQ(special.eos, -1);
    EXPECT_LT(special.audio_pad, (*tokenizer)->vocab_size());
  }
  const std::string path = ::testing::TempDir() + "/broken.json";
  std::ofstream(path) << "not json";
  const absl::Status status = Tokenizer::Load(path).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path + " is not JSON"));
}

TEST(TokenizerTest, ASymbolTheJsonLacksIsNamedWithItsKey) {
  SpecialTokenNames names;
  names.audio_pad = "<|audo_pad|>";
  const auto tokenizer = Tokenizer::Load(CopyOfQwen("tokenizer.json"), names);
  ASSERT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("\"<|audo_pad|>\""));
  EXPECT_THAT(std::string(tokenizer.status().message()),
              HasSubstr("data.special_tokens.audio_pad"));
  // A word of the vocabulary is no symbol.
  names = {};
  names.audio_pad = "the";
  EXPECT_FALSE(Tokenizer::Load(CopyOfQwen("tokenizer.json"), names).ok());
}

TEST(TokenizerTest, OrdinaryAddedTokensMeanThemselvesUnlessTheyAreSymbols) {
  SpecialTokenNames names;
  const auto open = Tokenizer::Load(CopyOfQwen("tokenizer.json"), names);
  names.audio_pad = "<think>";
  const auto closed = Tokenizer::Load(CopyOfQwen("tokenizer.json"), names);
  ASSERT_TRUE(open.ok() && closed.ok()) << open.status() << closed.status();
  EXPECT_EQ((*open)->Encode("<think>").size(), 1u);
  EXPECT_GT((*closed)->Encode("<think>").size(), 1u);
}

}  // namespace
}  // namespace omni::dataloader
