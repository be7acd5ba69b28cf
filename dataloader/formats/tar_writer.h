// Writes a tar shard. Equal members give equal bytes: times, owners and modes are fixed.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace omni::dataloader {

class TarWriter {
 public:
  // Writes to `path` + ".tmp" until Finish.
  static absl::StatusOr<std::unique_ptr<TarWriter>> Create(const std::string& path);
  ~TarWriter();  // an unfinished shard is removed

  // Members of one sample go one after another, its .json first.
  absl::Status Add(const std::string& member_name, absl::string_view bytes);
  absl::Status Finish();  // and renames to `path`

 private:
  struct Impl;
  explicit TarWriter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace omni::dataloader
