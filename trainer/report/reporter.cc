#include "trainer/report/reporter.h"

#include <algorithm>
#include <cstdio>
#include <functional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/status.h"

namespace omni::trainer {
namespace {

constexpr int64_t kProgressBytes = 16 << 10, kTextBytes = 1 << 20;
// When a stall is first spoken of.
constexpr absl::Duration kSayAfter = absl::Seconds(10);
constexpr absl::Duration kTerminalLimit = absl::Seconds(10);

std::string Brief(absl::Duration duration) {
  return absl::FormatDuration(absl::Trunc(duration, absl::Seconds(1)));
}

int64_t WeightOf(const std::map<std::string, double>& values) {
  int64_t bytes = 64;
  for (const auto& [name, value] : values) bytes += static_cast<int64_t>(name.size()) + 80;
  return bytes;
}

}  // namespace

struct JobReporter::Storage {
  std::string run_dir;
  std::unique_ptr<MetricsLog> metrics;
  std::unique_ptr<TensorBoardWriter> tensorboard;
  std::function<void(const std::string&)> warn;  // must not block
  std::weak_ptr<WriterThread> thread;
  bool first = true;

  // Tries until it succeeds or the reporter is gone.
  void Keep(const std::function<absl::Status()>& write) const {
    const WorkingClock& clock = WorkingClock::OfProcess();
    const absl::Duration start = clock.Now();
    absl::Duration warn_at = start;
    bool failed = false;
    while (true) {
      const absl::Status status = write();
      const absl::Duration now = clock.Now();
      if (status.ok()) {
        if (failed) warn(absl::StrCat("the metrics are written again, after ", Brief(now - start)));
        return;
      }
      failed = true;
      const auto self = thread.lock();
      if (self == nullptr || self->is_over()) return;
      if (now >= warn_at) {
        warn(absl::StrCat(status.message(), "; ", self->num_waiting(),
                          " reports of steps wait and are tried again, training goes on"));
        warn_at = now + std::max(kSayAfter, now - start);
      }
      absl::SleepFor(absl::Milliseconds(500));
    }
  }

  void Begin(int64_t step) {
    first = false;
    Keep([&] { return metrics->TruncateFrom(step); });
    if (tensorboard != nullptr) Keep([&] { return tensorboard->Start(step); });
  }

  void Write(int64_t step, const std::map<std::string, double>& values) {
    // Evaluations come in reports of their own: one that an earlier start left out stands beside
    // the step it belongs to.
    const bool is_step = values.count("loss") > 0;
    if (first) Begin(is_step ? step : step + 1);
    Keep([&] { return metrics->Write(step, values); });
    if (tensorboard != nullptr) Keep([&] { return tensorboard->Write(step, values); });
  }

  void AddAddress(const std::string& line) const {
    const std::string path = run_dir + "/metrics_addresses.txt";
    std::FILE* file = std::fopen(path.c_str(), "ae");
    const bool is_written = file != nullptr && std::fprintf(file, "%s\n", line.c_str()) > 0;
    if (file == nullptr || std::fclose(file) != 0 || !is_written) {
      warn(absl::StrCat(path, ": can't be written"));
    }
  }
};

JobReporter::JobReporter(const Options& options)
    : options_(options),
      terminal_(std::make_shared<Terminal>(options.num_steps, options.terminal)) {}

absl::StatusOr<std::unique_ptr<JobReporter>> JobReporter::Create(const Options& options) {
  std::unique_ptr<JobReporter> reporter(new JobReporter(options));
  auto storage = std::make_shared<Storage>();
  storage->run_dir = options.run_dir;
  OMNI_ASSIGN_OR_RETURN(storage->metrics, MetricsLog::Open(options.run_dir + "/metrics.jsonl"));
  if (options.tensorboard) {
    OMNI_ASSIGN_OR_RETURN(storage->tensorboard,
                          TensorBoardWriter::Create(options.run_dir + "/tensorboard"));
  }
  storage->thread = reporter->to_storage_;
  storage->warn =
      [terminal = reporter->terminal_,
       to_terminal = std::weak_ptr<WriterThread>(reporter->to_terminal_)](const std::string& text) {
        const auto thread = to_terminal.lock();
        if (thread == nullptr) return;
        thread->Post({.bytes = static_cast<int64_t>(text.size()), .most_bytes = kTextBytes},
                     [terminal, text] { terminal->progress.Print("warning: " + text); });
      };
  reporter->storage_ = std::move(storage);
  return reporter;
}

void JobReporter::Begin(int64_t step) {
  to_storage_->Post({.bytes = 64}, [storage = storage_, step] {
    if (storage->first) storage->Begin(step);
  });
}

bool JobReporter::Step(int64_t step, const std::map<std::string, double>& values) {
  WarnIfStalled();
  const bool is_kept =
      to_storage_->Post({.bytes = WeightOf(values), .most_bytes = options_.waiting_bytes_max},
                        [storage = storage_, step, values] { storage->Write(step, values); });
  if (!is_kept) return false;
  if (values.count("loss") == 0) return true;
  const std::lock_guard<std::mutex> lock(mutex_);
  const int64_t left_out = steps_left_out_;
  const bool is_shown = to_terminal_->Post(
      {.bytes = 256, .most_bytes = kProgressBytes}, [terminal = terminal_, step, values, left_out] {
        if (left_out > 0) {
          terminal->progress.Print(absl::StrCat(
              "(the progress of ", left_out, " steps was not shown: the terminal took nothing)"));
        }
        terminal->progress.Step(step, values);
      });
  steps_left_out_ = is_shown ? 0 : left_out + 1;
  return true;
}

void JobReporter::Print(const std::string& text) { PostText(kTextBytes, text); }

void JobReporter::PostText(int64_t most_bytes, const std::string& text) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const int64_t left_out = texts_left_out_;
  const bool is_shown = to_terminal_->Post(
      {.bytes = static_cast<int64_t>(text.size()) + 64, .most_bytes = most_bytes},
      [terminal = terminal_, text, left_out] {
        if (left_out > 0) {
          terminal->progress.Print(
              absl::StrCat("(", left_out, " messages were not shown: the terminal took nothing)"));
        }
        terminal->progress.Print(text);
      });
  texts_left_out_ = is_shown ? 0 : left_out + 1;
}

void JobReporter::AddMetricsAddress(const std::string& line) {
  to_storage_->Post({.bytes = static_cast<int64_t>(line.size()) + 64},
                    [storage = storage_, line] { storage->AddAddress(line); });
}

// A write that hangs says nothing by itself.
void JobReporter::WarnIfStalled() {
  const absl::Duration busy = to_storage_->busy_for();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (busy < kSayAfter) warn_at_ = kSayAfter;
    if (busy < warn_at_) return;
    warn_at_ = 2 * busy;
  }
  Print(absl::StrCat("warning: ", options_.run_dir, "/metrics.jsonl takes nothing since ",
                     Brief(busy), "; ", to_storage_->num_waiting(),
                     " reports of steps wait, training goes on"));
}

absl::Status JobReporter::FinishMetrics(absl::Duration storage_limit) {
  const WaitEnd end = to_storage_->Finish(
      {.limit = storage_limit, .say = [&](absl::Duration waited) {
         Print(absl::StrCat("waiting since ", Brief(waited), " until ", to_storage_->num_waiting(),
                            " reports of steps are in ", options_.run_dir, "/metrics.jsonl"));
       }});
  if (end == WaitEnd::kReady) return absl::OkStatus();
  return absl::DeadlineExceededError(
      absl::StrCat(options_.run_dir, "/metrics.jsonl: ", to_storage_->num_waiting(),
                   " reports of steps could not be written within ", Brief(storage_limit)));
}

void JobReporter::FinishTerminal(const std::string& last_text) {
  to_terminal_->Post({.most_bytes = 2 * kTextBytes}, [terminal = terminal_, last_text] {
    terminal->progress.Finish();
    if (!last_text.empty()) terminal->progress.Print(last_text);
  });
  to_terminal_->Finish({.limit = kTerminalLimit});
}

}  // namespace omni::trainer
