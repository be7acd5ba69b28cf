#include "tools/data_make_sentencepiece.h"

#include <sentencepiece_trainer.h>

#include <utility>

namespace omni::tools {
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

std::string TrainSentencePiece(const std::unordered_map<std::string, std::string>& options,
                               std::vector<std::string> lines, std::string* model) {
  LineIterator iterator(std::move(lines));
  const auto status = sentencepiece::SentencePieceTrainer::Train(options, &iterator, model);
  return status.ok() ? "" : status.ToString();
}

}  // namespace omni::tools
