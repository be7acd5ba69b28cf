// This rank's part of each training step, prepared ahead by threads: the tokens its replica of the
// decoder reads, and the media that this rank encodes. It decodes no others.
//
// A planning thread walks the lanes (step_planner.h) and lays out packs whose sizes are known
// before anything is decoded; decoding threads fill them in. Steps come out in order and are
// bitwise the same whatever the number of threads. Decoded media waiting never exceed
// data.loader.memory_mib, except that a single step may be larger, alone. Beside them there are the
// step in use (Recycle gives its storage to a later one) and, for each decoding thread, one file
// and a few of its frames.
//
//   OMNI_ASSIGN_OR_RETURN(auto loader, Loader::Create(config, rank, world, start));
//   while (...) {
//     OMNI_ASSIGN_OR_RETURN(StepBatch batch, loader->Next());
//     ... train ...                                     // then keep batch.state_after
//     loader->Recycle(std::move(batch));
//   }
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "dataloader/batch.h"
#include "dataloader/data_config.h"
#include "dataloader/media/video.h"
#include "dataloader/sample_planner.h"
#include "dataloader/step_planner.h"
#include "parallel/data_layout.h"
#include "parallel/encoder_deal.h"
#include "runtime/base/progress.h"

namespace omni::dataloader {

// Opens the tokenizer and the sources of `config`, which are read through `storage` (null: the
// system's own, nothing tried again). Errors of Tokenizer::Load and OpenSource, the latter with the
// source's name before them.
absl::StatusOr<std::shared_ptr<const SamplePlanner>> OpenSources(
    const DataConfig& config, std::shared_ptr<const VideoPlugin> video = nullptr,
    std::shared_ptr<Storage> storage = nullptr);

class Loader {
 public:
  struct Options {
    int32_t rank = 0;
    // How the ranks share a step: parallel::DataLayout::Of. Encoders of the recipe's data that it
    // lacks are added.
    parallel::DataLayout data = parallel::DataLayout::DataParallel(1);
    parallel::EncodeCosts costs;
    LoaderState start;                         // as StepPlanner::Create
    std::shared_ptr<const VideoPlugin> video;  // null: looked for when a clip is met
    // Of the sources: its retries end with the loader. May be null.
    std::shared_ptr<Storage> storage;
    // Ticked by Next for the samples that get ready while it waits: whoever waits for this rank
    // then sees that it gets on. Shared with them; may be null.
    std::shared_ptr<Progress> progress = nullptr;
  };
  // The first: data parallel over `world` ranks.
  // Sizes of patches and mel bands are those of `config`: see DataConfig::SetPatchGeometry.
  static absl::StatusOr<std::unique_ptr<Loader>> Create(const DataConfig& config, int32_t rank,
                                                        int32_t world, LoaderState start = {});
  static absl::StatusOr<std::unique_ptr<Loader>> Create(
      std::shared_ptr<const SamplePlanner> samples, Options options);
  // Stops the threads: waits for the samples being decoded, for 5 seconds at most. A thread still
  // in storage then is left to itself, with what it uses; nothing of Options but `video` is.
  ~Loader();

  // The next step. DeadlineExceeded when no sample has got ready for `limit`, however long the step
  // takes in all; it names those being decoded or planned then, and what is read again and again.
  // An error of the planner's or of a medium's surroundings (storage that fails, a missing plugin)
  // is returned again by every later call. Cancelled if `stop`, asked every 50 ms while the step is
  // not ready, is true: nothing is lost, a later call returns the same step. One caller at a time.
  absl::StatusOr<StepBatch> Next(absl::Duration limit = absl::InfiniteDuration(),
                                 const std::function<bool()>& stop = {});

  // Takes back a step that is done with: later ones are decoded into its storage.
  void Recycle(StepBatch batch);

  // For metrics; from any thread.
  int64_t queue_depth() const;     // steps ready or being prepared
  int64_t buffered_bytes() const;  // of their media
  int64_t buffered_bytes_max() const;
  int64_t kept_bytes() const;      // of storage taken back, at most that of two steps
  int64_t decoding_bytes() const;  // of files and frames on their way
  int64_t plan_bytes() const;      // of the open windows' plans
  int64_t table_bytes() const;     // of the sources' tables
  // The most each may come to, but for steps and files that alone are larger than what is allowed.
  int64_t max_media_bytes() const;
  int64_t max_plan_bytes() const;
  int64_t max_table_bytes() const;

 private:
  class Impl;
  explicit Loader(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;  // shared with its threads
};

}  // namespace omni::dataloader
