#include "dataloader/bpe/tokenizer_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "dataloader/bpe/bpe_tokenizer.h"
#include "tests/dataloader/bpe/golden_file.h"

namespace omni::dataloader {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::StartsWith;

const json& Qwen() {
  static const json document = json::parse(ReadGolden("qwen/tokenizer.json"));
  return document;
}

TEST(TokenizerJsonTest, FamiliesAreReadWhole) {
  const auto qwen = ParseTokenizerJson(ReadGolden("qwen/tokenizer.json"), "qwen");
  ASSERT_TRUE(qwen.ok()) << qwen.status();
  EXPECT_TRUE(qwen->nfc);
  EXPECT_FALSE(qwen->ignore_merges);
  EXPECT_EQ(qwen->splits.size(), 1u);
  EXPECT_EQ(qwen->vocabulary.size(), 3000u);
  EXPECT_EQ(qwen->merges.size(), 3000u - 256);
  EXPECT_TRUE(qwen->prefix.empty());
  const auto llama3 = ParseTokenizerJson(ReadGolden("llama3/tokenizer.json"), "llama3");
  ASSERT_TRUE(llama3.ok()) << llama3.status();
  EXPECT_FALSE(llama3->nfc);
  EXPECT_TRUE(llama3->ignore_merges);
  EXPECT_EQ(llama3->prefix, std::vector<int32_t>{llama3->added_tokens[0].id});
  EXPECT_EQ(llama3->added_tokens[0].content, "<|begin_of_text|>");
  EXPECT_TRUE(llama3->added_tokens[0].special);
}

struct Bad {
  const char* name;
  std::function<void(json&)> change;
  const char* key;
  const char* message;
};

class BadTokenizerJsonTest : public ::testing::TestWithParam<Bad> {};

TEST_P(BadTokenizerJsonTest, IsOneErrorThatNamesTheKey) {
  json document = Qwen();
  GetParam().change(document);
  const absl::Status status = BpeTokenizer::FromJson(document.dump(), "t.json").status();
  ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              StartsWith(std::string("tokenizer t.json: ") + GetParam().key + ": "));
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

json& Split(json& d) { return d["pre_tokenizer"]["pretokenizers"][0]; }

INSTANTIATE_TEST_SUITE_P(
    All, BadTokenizerJsonTest,
    ::testing::Values(
        Bad{"Version", [](json& d) { d["version"] = "2.0"; }, "version", "expected 1.0"},
        Bad{"UnknownKey", [](json& d) { d["aded_tokens"] = 1; }, "aded_tokens",
            "did you mean \"added_tokens\"?"},
        Bad{"Truncation", [](json& d) { d["truncation"] = {{"max_length", 5}}; }, "truncation",
            "expected null"},
        Bad{"Padding", [](json& d) { d["padding"] = {{"length", 5}}; }, "padding", "expected null"},
        Bad{"ModelMissing", [](json& d) { d.erase("model"); }, "model", "missing"},
        Bad{"ModelType", [](json& d) { d["model"]["type"] = "Unigram"; }, "model.type",
            "found \"Unigram\", expected BPE"},
        Bad{"Dropout", [](json& d) { d["model"]["dropout"] = 0.1; }, "model.dropout", "found 0.1"},
        Bad{"ByteFallback", [](json& d) { d["model"]["byte_fallback"] = true; },
            "model.byte_fallback", "found true"},
        Bad{"Suffix", [](json& d) { d["model"]["end_of_word_suffix"] = "</w>"; },
            "model.end_of_word_suffix", "</w>"},
        Bad{"Prefix", [](json& d) { d["model"]["continuing_subword_prefix"] = "##"; },
            "model.continuing_subword_prefix", "##"},
        Bad{"ModelKey", [](json& d) { d["model"]["cache"] = 5; }, "model.cache", "unknown key"},
        Bad{"ByteMissing",
            [](json& d) {
              d["model"]["vocab"].erase("Ā");
              d["model"]["vocab"]["zzz"] = 4000;
            },
            "model.vocab", "for byte 0"},
        Bad{"VocabType", [](json& d) { d["model"]["vocab"] = json::array(); }, "model.vocab",
            "expected an object"},
        Bad{"IdNegative", [](json& d) { d["model"]["vocab"]["!"] = -1; }, "model.vocab.!",
            "between 0 and"},
        Bad{"IdTwice", [](json& d) { d["model"]["vocab"]["zz1"] = 5; }, "model.vocab.zz1",
            "has id 5, as"},
        Bad{"MergeOfThree", [](json& d) { d["model"]["merges"][3] = {"a", "b", "c"}; },
            "model.merges[3]", "two tokens"},
        Bad{"MergeString", [](json& d) { d["model"]["merges"][3] = "ab"; }, "model.merges[3]",
            "a space between"},
        Bad{"MergeType", [](json& d) { d["model"]["merges"][3] = 5; }, "model.merges[3]",
            "expected a string"},
        Bad{"MergeUnknown", [](json& d) { d["model"]["merges"][3] = "! zzz"; }, "model.merges[3]",
            "\"zzz\" is not in the vocabulary"},
        Bad{"MergeMakesSpecial",
            [](json& d) {
              d["model"]["vocab"]["!!#"] = 3000;
              d["model"]["merges"][2743] = "! !#";
              d["model"]["vocab"]["!#"] = 3001;
              d["added_tokens"] = {{{"id", 3000}, {"content", "!!#"}, {"single_word", false},
                                    {"lstrip", false}, {"rstrip", false}, {"normalized", false},
                                    {"special", true}}};
            },
            "model.merges[2743]", "special token"},
        Bad{"AddedIdWrong", [](json& d) { d["added_tokens"][1]["id"] = 3005; },
            "added_tokens[1].id", "found 3005 for \"<|im_start|>\", expected 3001"},
        Bad{"AddedTwice",
            [](json& d) { d["added_tokens"][1]["content"] = "<|endoftext|>"; },
            "added_tokens[1].content", "twice"},
        Bad{"AddedEmpty", [](json& d) { d["added_tokens"][0]["content"] = ""; },
            "added_tokens[0].content", "is empty"},
        Bad{"AddedInVocabulary", [](json& d) { d["added_tokens"][0]["content"] = "!"; },
            "added_tokens[0].id", "its id in the vocabulary"},
        Bad{"AddedFlag", [](json& d) { d["added_tokens"][0]["special"] = 1; },
            "added_tokens[0].special", "true or false"},
        Bad{"AddedMissing", [](json& d) { d.erase("added_tokens"); }, "added_tokens", "missing"},
        Bad{"Normalizer", [](json& d) { d["normalizer"]["type"] = "NFKC"; }, "normalizer.type",
            "NFKC"},
        Bad{"NormalizerInSequence",
            [](json& d) {
              d["normalizer"] = {{"type", "Sequence"},
                                 {"normalizers", {{{"type", "NFC"}}, {{"type", "Lowercase"}}}}};
            },
            "normalizer.normalizers[1].type", "Lowercase"},
        Bad{"PreTokenizerMissing", [](json& d) { d["pre_tokenizer"] = nullptr; }, "pre_tokenizer",
            "missing"},
        Bad{"PreTokenizerStep", [](json& d) { Split(d)["type"] = "Digits"; },
            "pre_tokenizer.pretokenizers[0].type", "Digits"},
        Bad{"NoByteLevel", [](json& d) { d["pre_tokenizer"]["pretokenizers"].erase(1); },
            "pre_tokenizer", "no ByteLevel"},
        Bad{"StepBehindByteLevel",
            [](json& d) {
              auto& steps = d["pre_tokenizer"]["pretokenizers"];
              steps.push_back(steps[0]);
            },
            "pre_tokenizer.pretokenizers[2]", "behind ByteLevel"},
        Bad{"PrefixSpace",
            [](json& d) {
              d["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true;
            },
            "pre_tokenizer.pretokenizers[1].add_prefix_space", "expected false"},
        Bad{"Behavior", [](json& d) { Split(d)["behavior"] = "MergedWithNext"; },
            "pre_tokenizer.pretokenizers[0].behavior", "Isolated or Removed"},
        Bad{"Regex", [](json& d) { Split(d)["pattern"]["Regex"] = "\\w+"; },
            "pre_tokenizer.pretokenizers[0].pattern.Regex", "\"\\w\""},
        Bad{"EmptyMatch", [](json& d) { Split(d)["pattern"]["Regex"] = "a*"; },
            "pre_tokenizer.pretokenizers[0].pattern.Regex", "empty string"},
        Bad{"EmptyString", [](json& d) { Split(d)["pattern"] = {{"String", ""}}; },
            "pre_tokenizer.pretokenizers[0].pattern.String", "empty string"},
        Bad{"PatternKey", [](json& d) { Split(d)["pattern"]["Regexp"] = "a"; },
            "pre_tokenizer.pretokenizers[0].pattern.Regexp", "did you mean \"Regex\"?"},
        Bad{"Invert", [](json& d) { Split(d).erase("invert"); },
            "pre_tokenizer.pretokenizers[0].invert", "missing"},
        Bad{"PostProcessor",
            [](json& d) { d["post_processor"] = {{"type", "BertProcessing"}}; },
            "post_processor.type", "BertProcessing"},
        Bad{"TemplateWithoutText",
            [](json& d) {
              d["post_processor"] = {{"type", "TemplateProcessing"}, {"single", json::array()}};
            },
            "post_processor.single", "no sequence"},
        Bad{"TemplateId",
            [](json& d) {
              d["post_processor"] = {
                  {"type", "TemplateProcessing"},
                  {"single", {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}}},
                  {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {7}}}}}}};
            },
            "post_processor.special_tokens.<s>.ids[0]", "no id of an added token"},
        Bad{"Decoder", [](json& d) { d["decoder"]["type"] = "Metaspace"; }, "decoder.type",
            "Metaspace"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(TokenizerJsonTest, WhatIsNoJsonIsSaidSo) {
  for (const std::string text : {"", "{", "not json", "[1, 2"}) {
    const absl::Status status = ParseTokenizerJson(text, "t.json").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), StartsWith("tokenizer t.json is not JSON"));
  }
  EXPECT_THAT(std::string(ParseTokenizerJson("[]", "t.json").status().message()),
              HasSubstr("expected an object"));
}

TEST(TokenizerJsonTest, ASpecialTokenOfTheVocabularyIsNoWord) {
  // With ignore_merges a word that spells it would be its id.
  json document = Qwen();
  document["model"]["ignore_merges"] = true;
  document["model"]["vocab"]["zqxj"] = 3000;
  json token = document["added_tokens"][0];
  token["content"] = "zqxj";
  token["id"] = 3000;
  document["added_tokens"] = {token};
  const auto tokenizer = BpeTokenizer::FromJson(document.dump(), "t.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  std::vector<int32_t> plain, special;
  (*tokenizer)->Encode("zqxj", {}, &plain);
  (*tokenizer)->Encode("zqxj", {.finds_reserved = true}, &special);
  EXPECT_EQ(special, std::vector<int32_t>{3000});
  EXPECT_EQ(std::count(plain.begin(), plain.end(), 3000), 0);
  EXPECT_EQ((*tokenizer)->Decode(plain), "zqxj");
}

}  // namespace
}  // namespace omni::dataloader
