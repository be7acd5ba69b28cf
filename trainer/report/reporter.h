// What a job shows and keeps while it runs: the terminal, metrics.jsonl, TensorBoard.
//
// Whoever reports never waits for them. Two threads write, each held up by its own kind of trouble:
//
//   the terminal   A held one (Ctrl-S, a selection), a full pipe: progress lines beyond 16 KiB and
//                  other text beyond 1 MiB are left out, counted, and the count is shown
//                  afterwards.
//   the storage    Nothing is left out. Up to 64 MiB wait (some 50,000 steps); then Step refuses,
//   and
//                  the worker keeps its reports (scheduler/coordinator_client.h) and at last waits
//                  with its step. What fails (a full disk) is tried again until it succeeds.
//
// Each says what it waits for. Finish waits for both, for a while.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "runtime/base/writer_thread.h"
#include "trainer/report/metrics_log.h"
#include "trainer/report/progress.h"

namespace omni::trainer {

class JobReporter {
 public:
  struct Options {
    std::string run_dir;
    int64_t num_steps = 0;
    bool terminal = false;  // is stdout one?
    bool tensorboard = false;
    int64_t waiting_bytes_max = int64_t{64} << 20;  // of reports for the storage
  };
  // Opens the files. Errors of MetricsLog::Open and TensorBoardWriter::Create.
  static absl::StatusOr<std::unique_ptr<JobReporter>> Create(const Options& options);

  // From any thread; return at once.

  // Before the first report, which says where without it: what earlier legs of the run reported of
  // `step` and later gives way to what comes now.
  void Begin(int64_t step);
  // False, and nothing has happened, if there is no room for it.
  bool Step(int64_t step, const std::map<std::string, double>& values);
  void Print(const std::string& text);
  // A line of metrics_addresses.txt.
  void AddMetricsAddress(const std::string& line);

  // Waits until metrics are written, for `storage_limit` at most: an error says how many are not.
  absl::Status FinishMetrics(absl::Duration storage_limit);
  // Waits until the terminal has shown `last_text`, ("": nothing more), for 10 seconds at most. The
  // last call.
  void FinishTerminal(const std::string& last_text);

 private:
  // What the threads use; theirs too, should they be stuck for good.
  struct Terminal {
    Terminal(int64_t num_steps, bool is_terminal) : progress(num_steps, is_terminal) {}
    ProgressLine progress;
  };
  struct Storage;

  explicit JobReporter(const Options& options);
  void PostText(int64_t most_bytes, const std::string& text);
  void WarnIfStalled();

  const Options options_;
  const std::shared_ptr<Terminal> terminal_;
  std::shared_ptr<Storage> storage_;
  const std::shared_ptr<WriterThread> to_terminal_ = std::make_shared<WriterThread>("the terminal");
  const std::shared_ptr<WriterThread> to_storage_ = std::make_shared<WriterThread>("the metrics");

  std::mutex mutex_;
  int64_t steps_left_out_ = 0;  // since the terminal last took something
  int64_t texts_left_out_ = 0;
  absl::Duration warn_at_;  // of the stall under way
};

}  // namespace omni::trainer
