// Microbatches of an evaluation, taken from an EvalLoader by a thread of its own, one or two ahead:
// between collectives nobody decodes, and who waits too long knows for which sample.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "dataloader/eval_loader.h"
#include "runtime/base/progress.h"

namespace omni::dataloader {

class EvalPrefetch {
 public:
  explicit EvalPrefetch(std::unique_ptr<EvalLoader> loader);
  // Waits a little for the sample that is being decoded, and leaves the thread to itself if it
  // stalls.
  ~EvalPrefetch();

  // As EvalLoader::Next. DeadlineExceeded when no sample has got ready for `limit`; it names the
  // one that stalls. `progress`, which may be null, is ticked for those that do while this waits.
  // Cancelled if `stop`, asked every 50 ms while nothing is ready, is true.
  absl::StatusOr<std::optional<Microbatch>> Next(absl::Duration limit, Progress* progress,
                                                 const std::function<bool()>& stop = {});

  // Ends the thread. What the loader has left out; nothing if it stalls.
  std::vector<FaultEvent> Faults();

 private:
  struct State {  // shared with the thread
    std::unique_ptr<EvalLoader> loader;
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Microbatch> ready;
    bool has_ended = false;  // after `ready` comes the end, or `status`
    absl::Status status;
    bool stop = false;
    bool is_over = false;  // the thread has ended
  };
  static void Work(State& state);
  bool Stop();  // true if the thread has ended

  const std::shared_ptr<State> state_ = std::make_shared<State>();
  std::thread thread_;
};

}  // namespace omni::dataloader
