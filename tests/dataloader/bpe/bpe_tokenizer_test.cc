#include "dataloader/bpe/bpe_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "tests/dataloader/bpe/golden_file.h"

namespace omni::dataloader {
namespace {

using ::testing::ElementsAre;

std::unique_ptr<BpeTokenizer> LoadGolden(const std::string& name,
                                         const std::vector<std::string>& reserved = {}) {
  const std::string file = name + "/tokenizer.json";
  auto tokenizer = BpeTokenizer::FromJson(ReadGolden(file), file, reserved);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

std::vector<int32_t> Ids(const BpeTokenizer& tokenizer, absl::string_view text,
                         const BpeEncodeOptions& options = {}) {
  std::vector<int32_t> ids;
  tokenizer.Encode(text, options, &ids);
  return ids;
}

std::string Show(const BpeTokenizer& tokenizer, const std::vector<int32_t>& ids) {
  std::string text;
  for (const int32_t id : ids) {
    absl::StrAppend(&text, id, ":", absl::CHexEscape(tokenizer.Piece(id)), " ");
  }
  return text;
}

class BpeGoldenTest : public ::testing::TestWithParam<const char*> {};

TEST_P(BpeGoldenTest, IdsAreTheReferencesForEveryString) {
  const auto tokenizer = LoadGolden(GetParam());
  const std::vector<std::string> strings = GoldenStrings();
  ASSERT_GE(strings.size(), 20000u);
  GoldenFile golden(absl::StrCat(GetParam(), "/ids.zst"));
  int64_t num_different = 0, num_plain_ids_of_their_own = 0;
  for (const std::string& text : strings) {
    const std::vector<int32_t> with_specials = golden.Numbers();
    const bool has_plain = golden.Number() != 0;
    const std::vector<int32_t> plain = has_plain ? golden.Numbers() : with_specials;
    num_plain_ids_of_their_own += has_plain ? 1 : 0;
    for (const bool finds_reserved : {true, false}) {
      const std::vector<int32_t>& expected = finds_reserved ? with_specials : plain;
      const std::vector<int32_t> found = Ids(*tokenizer, text, {.finds_reserved = finds_reserved});
      if (found == expected || ++num_different > 10) continue;
      ADD_FAILURE() << "\"" << absl::CHexEscape(text.substr(0, 300))
                    << "\", special tokens found: " << finds_reserved << "\n  found    "
                    << Show(*tokenizer, found) << "\n  expected " << Show(*tokenizer, expected);
    }
  }
  EXPECT_EQ(num_different, 0);
  EXPECT_GT(num_plain_ids_of_their_own, 200);  // or else nothing tells the two apart
}

TEST_P(BpeGoldenTest, TextsAreTheReferencesForRandomIds) {
  const auto tokenizer = LoadGolden(GetParam());
  GoldenFile golden(absl::StrCat(GetParam(), "/ids.zst"));
  for (size_t i = 0, n = GoldenStrings().size(); i < n; ++i) {
    golden.Numbers();
    if (golden.Number() != 0) golden.Numbers();
  }
  const uint64_t num_samples = golden.Number();
  ASSERT_GE(num_samples, 500u);
  for (uint64_t i = 0; i < num_samples; ++i) {
    const std::vector<int32_t> ids = golden.Numbers();
    EXPECT_EQ(tokenizer->Decode(ids), golden.String()) << Show(*tokenizer, ids);
  }
  EXPECT_TRUE(golden.AtEnd());
}

INSTANTIATE_TEST_SUITE_P(Families, BpeGoldenTest, ::testing::Values("qwen", "llama3", "variants"),
                         [](const auto& info) { return std::string(info.param); });

TEST(BpeTokenizerTest, ReservedNamesAreTextToo) {
  // <think> is an added token that is not special: text may mean it, unless it is reserved.
  const auto open = LoadGolden("qwen"), closed = LoadGolden("qwen", {"<think>"});
  const int32_t id = open->AddedTokenId("<think>");
  ASSERT_GE(id, 0);
  EXPECT_THAT(Ids(*open, "<think>"), ElementsAre(id));
  EXPECT_GT(Ids(*closed, "<think>").size(), 1u);
  EXPECT_EQ(closed->Decode(Ids(*closed, "<think>")), "<think>");
  EXPECT_THAT(Ids(*closed, "<think>", {.finds_reserved = true}), ElementsAre(id));
}

TEST(BpeTokenizerTest, LlamasTextStartsWithItsBegin) {
  const auto llama3 = LoadGolden("llama3"), qwen = LoadGolden("qwen");
  const int32_t begin = llama3->AddedTokenId("<|begin_of_text|>");
  EXPECT_THAT(Ids(*llama3, "", {.adds_prefix = true}), ElementsAre(begin));
  std::vector<int32_t> expected = Ids(*llama3, "the text");
  expected.insert(expected.begin(), begin);
  EXPECT_EQ(Ids(*llama3, "the text", {.adds_prefix = true}), expected);
  EXPECT_EQ(Ids(*qwen, "the text", {.adds_prefix = true}), Ids(*qwen, "the text"));
}

TEST(BpeTokenizerTest, IllFormedTextIsReadWithReplacementCharacters) {
  const auto tokenizer = LoadGolden("qwen");
  // As Python's errors="replace": one for each longest start of a sequence.
  for (const auto& [text, same_as] : std::vector<std::pair<std::string, std::string>>{
           {"a\xFF"
            "b",
            "a\xEF\xBF\xBD"
            "b"},
           {"\xE4\xB8", "\xEF\xBF\xBD"},
           {"\xE4\xB8x\x80", "\xEF\xBF\xBDx\xEF\xBF\xBD"},
           {"\xED\xA0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"},
           {"\xC0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD"},
           {"\xF4\x90\x80\x80<|im_end|>",
            "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD<|im_end|>"}}) {
    EXPECT_EQ(Ids(*tokenizer, text), Ids(*tokenizer, same_as)) << absl::CHexEscape(text);
    EXPECT_EQ(Ids(*tokenizer, text, {.finds_reserved = true}),
              Ids(*tokenizer, same_as, {.finds_reserved = true}));
  }
}

TEST(BpeTokenizerTest, UnknownIdsAreNothing) {
  const auto tokenizer = LoadGolden("qwen");
  EXPECT_EQ(tokenizer->Decode({-1, tokenizer->size(), 1 << 30}), "");
  EXPECT_EQ(tokenizer->Piece(-1), "");
  EXPECT_EQ(tokenizer->Piece(tokenizer->size()), "");
  EXPECT_EQ(tokenizer->AddedTokenId("<|nothing|>"), -1);
  EXPECT_EQ(tokenizer->Piece(tokenizer->AddedTokenId("<|im_end|>")), "<|im_end|>");
}

TEST(BpeTokenizerTest, ThreadsGetWhatOneGets) {
  const auto tokenizer = LoadGolden("qwen");
  std::vector<std::string> strings = GoldenStrings();
  strings.resize(4000);
  const auto encode_all = [&] {
    std::vector<int32_t> ids;
    for (const std::string& text : strings) tokenizer->Encode(text, {}, &ids);
    return ids;
  };
  std::vector<std::vector<int32_t>> found(4);
  std::vector<std::thread> threads;
  for (auto& ids : found) threads.emplace_back([&] { ids = encode_all(); });
  for (std::thread& thread : threads) thread.join();
  const std::vector<int32_t> expected = encode_all();
  for (const auto& ids : found) EXPECT_EQ(ids, expected);
}

}  // namespace
}  // namespace omni::dataloader
