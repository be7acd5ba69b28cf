// The sources of the quickstart, each with a training and a held-out half.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "dataloader/media/video.h"
#include "tools/data_make_shard.h"
#include "tools/data_make_tasks.h"

namespace omni::tools {

class SourceMaker {
 public:
  struct Options {
    std::string folder;
    uint64_t seed = 1;
    double scale = 1;
    std::string font_dir;
    std::shared_ptr<const dataloader::VideoPlugin> plugin;
    std::function<void(const std::string&)> progress;
  };
  explicit SourceMaker(Options options);

  // Each may run on its own thread; MakeSpeechAndMixed at most once at a time in the process.
  absl::Status MakeImages();
  absl::Status MakeClips();
  absl::Status MakeText();
  absl::Status MakeSpeechAndMixed();

  // The tar files, sorted; when all is made.
  std::vector<std::string> shards() const;

 private:
  // Makes samples 0 .. count - 1 of one source and split with `make(index, sample)`, and their
  // shards' indexes.
  absl::Status MakeSource(const std::string& source, Split split, int64_t count,
                          const std::function<absl::Status(int64_t, SampleBuilder*)>& make);
  // `full` x scale as a multiple of `unit`, so that the answers stay balanced; at least one unit.
  int64_t Count(int64_t full, int64_t unit) const;
  void Progress(const std::string& line);

  Options options_;
  mutable std::mutex mutex_;  // guards shards_ and the calls of options_.progress
  std::vector<std::string> shards_;
};

}  // namespace omni::tools
