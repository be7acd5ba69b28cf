#include "dataloader/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

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

}  // namespace
}  // namespace omni::dataloader
