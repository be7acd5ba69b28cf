// The metadata pass: everything about a sample that can be known without decoding its media.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "dataloader/chat_template.h"
#include "dataloader/data_config.h"
#include "dataloader/formats/sample_store.h"
#include "dataloader/tokenizer.h"
#include "runtime/base/progress.h"

namespace omni::dataloader {

// One sample of one source.
struct SampleKey {
  int32_t source = 0;  // index into the sources
  int64_t index = 0;   // in the source
  int64_t draw = 0;    // how many draws of this source its lane had made: differs by epoch

  bool operator==(const SampleKey&) const = default;
};

struct SamplePlan {
  SampleKey key;
  // Whose media it gets: `key`, but for evaluation with swapped media.
  SampleKey media_key;
  std::string sample_id;
  std::string group;  // for evaluation: Conversation::group
  TokenizedSample tokenized;
  std::vector<MediaInfo> media_info;  // of all the sample's media, also of those cut off
  int64_t loss_tokens = 0;
  bool was_cut = false;
  int64_t dropped_tokens = 0;  // how many DropText let go

  int64_t num_tokens() const {
    return dropped_tokens + static_cast<int64_t>(tokenized.tokens.size());
  }
  // Leaves what every rank needs of a sample, whoever reads it: how many tokens, and its media's
  // shapes and places. What grows with the text goes.
  void DropText();
  int64_t held_bytes() const;  // of memory, about
};

// What happened to a sample that is not trained on as it stands. Storage that fails is no fault of
// a sample's (formats/storage.h).
enum class SampleFault : uint8_t {
  kBroken,    // skipped: its JSON or metadata are wrong, a medium is missing or beyond limits
  kOverlong,  // skipped: more than sequence_length tokens
  kNoLoss,    // skipped: nothing in it has loss
  kCut,       // trained on up to a turn
  kBlanked,   // placed, then its media did not decode: zero media, no loss
  kUnpaired,  // skipped: evaluation with swapped media found no other sample like it
};
const char* Name(SampleFault fault);  // "overlong"

struct FaultEvent {
  SampleFault fault = SampleFault::kBroken;
  std::string source;
  std::string sample_id;  // as Printable, like the message: both stand in lines of logs
  std::string message;
  int32_t lane = -1, sample = -1;  // of a blanked one in a step: which of the lane's
};

// A source that is open.
struct OpenedSource {
  std::string name;
  std::shared_ptr<const SampleStore> store;  // shared with who opened it, for tests
  double video_fps = 0;                      // of its clips; 0: data.video.fps
  // To know it again by: where it is and what its files hold. 0 bytes: not known.
  std::string path = "";
  int64_t bytes = 0;
};

// Stateless but for its stores and what it says of its work: threads may share one.
class SamplePlanner {
 public:
  SamplePlanner(DataConfig config, std::vector<OpenedSource> sources,
                std::shared_ptr<const Tokenizer> tokenizer);

  // Either a plan, or the reason why there is none in `fault` (kBroken, kOverlong, kNoLoss). A
  // sample that was cut sets both. An error is no fault of the sample's: the job can't go on.
  struct Result {
    std::unique_ptr<SamplePlan> plan;
    std::unique_ptr<FaultEvent> fault;
  };
  // `max_tokens`: of the sample; absent: data.sequence_length.
  absl::StatusOr<Result> Plan(const SampleKey& key, std::optional<int64_t> max_tokens = {}) const {
    return Plan(key, key, max_tokens);
  }
  // With the media of another sample, which must have as many of each kind.
  absl::StatusOr<Result> Plan(const SampleKey& key, const SampleKey& media_key,
                              std::optional<int64_t> max_tokens = {}) const;

  const DataConfig& config() const { return config_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const std::vector<OpenedSource>& sources() const { return sources_; }
  int64_t held_bytes() const;  // of the sources' tables
  int64_t max_held_bytes() const;
  std::string sample_id(const SampleKey& key) const;

  // For who waits: how many calls of Plan have ended, and the samples that are being planned now.
  const Progress& progress() const { return progress_; }
  std::vector<std::string> in_work() const;

 private:
  absl::StatusOr<Result> PlanOne(const SampleKey& key, const SampleKey& media_key,
                                 std::optional<int64_t> max_tokens) const;
  absl::StatusOr<std::unique_ptr<SamplePlan>> Tokenize(const SampleKey& key,
                                                       const SampleKey& media_key) const;

  const DataConfig config_;
  const std::vector<OpenedSource> sources_;
  const std::shared_ptr<const Tokenizer> tokenizer_;  // shared with the evaluation's planner
  mutable Progress progress_;
  mutable std::mutex mutex_;
  mutable std::vector<SampleKey> in_work_;  // guarded by mutex_
};

// Errors that are a sample's own fault: it is left out or blanked and the job goes on.
bool IsSampleFault(const absl::Status& status);

}  // namespace omni::dataloader
