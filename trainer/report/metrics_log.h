// The numbers of a run on disk: metrics.jsonl, one object a step, and TensorBoard events.
#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace omni::trainer {

// Appends {"step": 7, "loss": 2.5, ...}, keys in alphabetical order after `step`. Doubles are
// written so that reading them back gives the same bits.
class MetricsLog {
 public:
  static absl::StatusOr<std::unique_ptr<MetricsLog>> Open(const std::string& path);
  ~MetricsLog();

  // A run that resumes repeats steps: drops the lines of `step` and later before it goes on.
  absl::Status TruncateFrom(int64_t step);
  // All of it or nothing: after an error it may be tried again.
  absl::Status Write(int64_t step, const std::map<std::string, double>& values);

 private:
  explicit MetricsLog(std::string path) : path_(std::move(path)) {}
  absl::Status Reopen();

  const std::string path_;
  std::FILE* file_ = nullptr;
};

// TensorBoard's event file: length-prefixed, checksummed records of tensorflow.Event messages
// (tensorflow/core/util/event.proto), scalars only.
class TensorBoardWriter {
 public:
  static absl::StatusOr<std::unique_ptr<TensorBoardWriter>> Create(const std::string& folder);
  ~TensorBoardWriter();

  // SessionLog START: TensorBoard forgets what files of earlier legs have of `step` and later.
  absl::Status Start(int64_t step);
  absl::Status Write(int64_t step, const std::map<std::string, double>& values);

 private:
  TensorBoardWriter() = default;
  absl::Status WriteRecord(const std::string& event);

  std::string path_;
  std::FILE* file_ = nullptr;
};

}  // namespace omni::trainer
