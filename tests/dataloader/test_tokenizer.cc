#include "tests/dataloader/test_tokenizer.h"

#include "dataloader/sentencepiece_model.h"
#include "runtime/base/check.h"

namespace omni::dataloader {

std::string TrainTestModel(const std::vector<std::string>& symbols) {
  std::string joined;
  for (const std::string& symbol : symbols) joined += (joined.empty() ? "" : ",") + symbol;
  std::string model;
  const std::string error =
      TrainSentencePiece({{"model_type", "bpe"},
                          {"vocab_size", "320"},
                          {"byte_fallback", "true"},
                          {"hard_vocab_limit", "false"},
                          {"normalization_rule_name", "identity"},
                          {"remove_extra_whitespaces", "false"},
                          {"add_dummy_prefix", "false"},
                          {"bos_id", "-1"},
                          {"eos_id", "-1"},
                          {"pad_id", "-1"},
                          {"unk_id", "0"},
                          {"num_threads", "1"},
                          {"minloglevel", "2"},
                          {"user_defined_symbols", joined}},
                         {"system user assistant tool", "What number is shown?", "red green blue",
                          "the quick brown fox jumps over the lazy dog"},
                         &model);
  OMNI_CHECK(error.empty());
  return model;
}

}  // namespace omni::dataloader
