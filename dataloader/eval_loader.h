// One pass over a held-out source, in order, for evaluation.
//
// Rank r gets samples r, r + world, ... in packs as training has them: teacher forced, the
// targets are there. The blind modes show what can be answered without seeing:
//   swapped  each sample has the media of another one that asks the same question with as many
//            media of each kind (a fixed random cycle through such samples); sizes come along
//   blanked  all media are zeros
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "dataloader/batch.h"
#include "dataloader/data_config.h"
#include "dataloader/media/video.h"
#include "dataloader/media_decoder.h"
#include "dataloader/sample_planner.h"
#include "runtime/base/progress.h"

namespace omni::dataloader {

enum class Blind : uint8_t { kNone, kSwapped, kBlanked };

class EvalLoader {
 public:
  struct Options {
    int32_t rank = 0, world = 1;
    Blind blind = Blind::kNone;
    std::shared_ptr<const Tokenizer> tokenizer;  // null: loaded from the recipe's path
    std::shared_ptr<const VideoPlugin> video;    // null: looked for when a clip is met
    std::shared_ptr<Storage> storage;            // null: the system's own, nothing tried again
  };
  // `name`: of one of config.eval; NotFound otherwise. Errors of Tokenizer and OpenSource.
  static absl::StatusOr<std::unique_ptr<EvalLoader>> Create(const DataConfig& config,
                                                            const std::string& name,
                                                            const Options& options);
  // Over a source that is open; `config` gives lengths and sizes.
  static absl::StatusOr<std::unique_ptr<EvalLoader>> Create(const DataConfig& config,
                                                            OpenedSource source,
                                                            int64_t max_samples,
                                                            const Options& options);

  // The next pack of at most sequence_length * micro_batch_sequences tokens; nullopt at the end.
  // Samples that can't be used are left out, or blanked without loss, and reported in faults().
  // Other errors, as of storage that fails, are returned.
  absl::StatusOr<std::optional<Microbatch>> Next();

  const std::vector<FaultEvent>& faults() const { return faults_; }
  int64_t num_samples() const { return num_samples_; }  // of all ranks

  // From any thread, for who waits: grows with each sample planned or decoded; which are now.
  const Progress& progress() const { return progress_; }
  std::vector<std::string> in_work() const;

 private:
  EvalLoader(std::unique_ptr<SamplePlanner> planner, int64_t num_samples, const Options& options);
  absl::Status PairUp();  // fills donors_

  const std::unique_ptr<SamplePlanner> planner_;
  const MediaDecoder decoder_;
  const Options options_;
  const int64_t num_samples_;
  int64_t next_;                         // sample
  std::vector<int64_t> donors_;          // swapped: whose media a sample gets; -1 nobody's
  std::unique_ptr<SamplePlan> carried_;  // planned, did not fit the last pack
  std::vector<FaultEvent> faults_;
  Progress progress_;
  mutable std::mutex mutex_;
  std::string decoding_;  // a sample's id, or empty; guarded by mutex_
};

}  // namespace omni::dataloader
