// manifest.json of a data set: what it was made from, and which files make it complete.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "dataloader/media/video.h"
#include "tools/data_make.h"

namespace omni::tools {

class Manifest {
 public:
  // What a run with these options would be made from: seed, scale, library versions, fonts,
  // voices, motions, questions. No files yet. FailedPrecondition if libespeak-ng is missing.
  static absl::StatusOr<Manifest> For(const DataMakeOptions& options,
                                      const dataloader::VideoPlugin& plugin);

  // NotFound or DataLoss, naming the file.
  static absl::StatusOr<Manifest> Load(const std::string& folder);

  bool IsSameRecipe(const Manifest& other) const;
  // Every file listed is in `folder` with the size it had.
  bool IsComplete(const std::string& folder) const;

  // Writes `folder`/manifest.json with the size and XXH3-64 of the tokenizer, of `shards`
  // (absolute or relative paths inside `folder`) and of their indexes.
  absl::Status Write(const std::string& folder, const std::vector<std::string>& shards) const;

 private:
  struct Json;
  std::shared_ptr<const Json> json_;  // shared by copies, immutable
};

}  // namespace omni::tools
