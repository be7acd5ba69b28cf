#include "tests/dataloader/test_tokenizer.h"

#include <sentencepiece_trainer.h>

#include "runtime/base/check.h"

namespace omni::dataloader {
namespace {

class LineIterator : public sentencepiece::SentenceIterator {
 public:
  explicit LineIterator(std::vector<std::string> lines) : lines_(std::move(lines)) {}
  bool done() const override { return next_ >= lines_.size(); }
  void Next() override { ++next_; }
  const std::string& value() const override { return lines_[next_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  std::vector<std::string> lines_;
  size_t next_ = 0;
};

}  // namespace

std::string TrainTestModel(const std::vector<std::string>& symbols) {
  std::string joined;
  for (const std::string& symbol : symbols) joined += (joined.empty() ? "" : ",") + symbol;
  LineIterator lines({"system user assistant tool", "What number is shown?", "red green blue",
                      "the quick brown fox jumps over the lazy dog"});
  std::string model;
  const auto status =
      sentencepiece::SentencePieceTrainer::Train({{"model_type", "bpe"},
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
                                                 &lines, &model);
  OMNI_CHECK(status.ok());
  return model;
}

}  // namespace omni::dataloader
