// What keeps a run: saves, and what follows them, beside the step.
//
//   keeper.Save(step, ranges, state)   copies, returns; the write goes on behind
//   ... steps, an evaluation ...       once all ranks have written, it is committed, whatever they
//   do keeper.FinishSave(...)             before the next save, and at the end: how it went
//   keeper.FinishChores()              at the end: checkpoints removed, exports written
//
// A thread of each rank waits for the rank's part, agrees with those of the other ranks on a
// communicator of their own, and rank 0's commits. What follows, removing older checkpoints and
// exporting, is work of rank 0 after that, which the next save need not wait for. All that touches
// storage is SideWork: it may stall for good and is given up when no block of it has moved for
// limits.storage; the save has then failed, the job has not. Ranks may be as uneven as they like.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "runtime/base/limits.h"
#include "runtime/base/progress.h"
#include "runtime/base/side_work.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/comm/communicator.h"
#include "trainer/chore_line.h"

namespace omni::trainer {

struct KeeperOptions {
  std::string folder;  // of the checkpoints
  int32_t rank = 0, num_ranks = 1, keep = 0;
  std::unique_ptr<Communicator> comm;  // of all ranks, used by nobody else; null: alone
  Limits limits;
  // Of the rank: ticked while its thread waits here, as long as what it waits for gets on.
  std::shared_ptr<Progress> progress;
  // Rank 0, after each commit; the path is the checkpoint's. May be empty.
  std::function<absl::Status(const std::string& path, const OnBlock& tick)> export_checkpoint;
  // For people: "warning" and what. From any thread; must not block.
  std::function<void(const std::string& text)> warn;
  // True once the job is to stop: exports not yet written are left out then.
  std::function<bool()> stops;
  OnBlock on_block;  // of each block of a file written or removed here; for tests
};

class Keeper {
 public:
  explicit Keeper(KeeperOptions options);
  // Gives up what is under way, here and on the other ranks.
  ~Keeper();

  // Copies `ranges` and begins; the save before it has been finished. All ranks.
  // `copy_out` copies what is not in host memory.
  void Save(int64_t step, absl::Span<const TensorRange> ranges, const std::string& state,
            const CopyOut& copy_out = {});
  // True between Save and FinishSave: the same on all ranks.
  bool is_open() const { return is_open_; }
  // Until the save is over on all ranks; it may have failed, which is warned of. `meet` is a
  // barrier of the threads that call this, all ranks': by it they find one that is gone. Fails as
  // it does.
  absl::Status FinishSave(const std::function<absl::Status()>& meet);
  // Rank 0: until all exports and removals are done, or have stalled, which is warned of. When the
  // job is to stop, an export gets a little time and is left out then. Others: at once.
  void FinishChores();

  int64_t saved_step() const { return saved_step_; }  // newest known to be committed; -1: none
  void set_saved_step(int64_t step) { saved_step_ = step; }
  int64_t held_bytes() const { return writer_.held_bytes(); }  // of the copy being written
  int64_t begun_step() const { return writer_.step(); }  // newest ever begun; -1: none

 private:
  void KeepSave();  // the thread
  // The whole of one save on this rank: how it went on all of them.
  absl::Status WriteAndCommit();
  absl::Status AwaitOwnPart();
  // The sum over ranks of 1 for each that failed; fails as the communicator does.
  absl::StatusOr<int32_t> CountFailures(bool failed, const char* what);
  // Runs `task` as SideWork to its end or until it stalls.
  absl::Status RunSideWork(const std::string& what, SideWork::Task task);
  // Until `is_over`, watching `work`, if not null, for progress; Unavailable if it stalls,
  // Cancelled if the keeper is destroyed. Warns of long waits.
  absl::Status Watch(const std::string& what, const Progress* work,
                     const std::function<bool()>& is_over);
  void StartChores(int64_t step);
  SideWork::Task Pruning(int64_t step) const;
  SideWork::Task Exporting(int64_t step) const;
  // For who waits in FinishSave: until the thread has come so far.
  void AwaitStage(int stage);

  KeeperOptions options_;
  CheckpointWriter writer_;
  bool is_open_ = false;
  std::atomic<int64_t> saved_step_{-1};
  std::atomic<bool> is_leaving_{false};
  std::atomic<int> stage_{0};  // of the save: 0 writing, 1 written here, 2 over
  std::thread thread_;
  // Rank 0's.
  struct Claims;  // which checkpoints are being exported or removed; shared with chores
  const std::shared_ptr<Claims> claims_;
  std::unique_ptr<ChoreLine> removals_, exports_;
};

}  // namespace omni::trainer
