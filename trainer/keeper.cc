#include "trainer/keeper.h"

#include <mutex>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/base/check.h"
#include "runtime/base/process.h"
#include "runtime/base/status.h"
#include "runtime/base/working_clock.h"
#include "runtime/checkpoint/layout.h"

namespace omni::trainer {
namespace {

constexpr absl::Duration kLook = absl::Milliseconds(10);
constexpr int kWritten = 1, kOver = 2;
// Of exports once the job is to stop: those that are nearly done get done.
constexpr absl::Duration kGraceOfExports = absl::Seconds(10);

std::string Long(absl::Duration time) {
  const absl::Duration unit = time < absl::Seconds(1) ? absl::Milliseconds(1) : absl::Seconds(1);
  return absl::FormatDuration(absl::Trunc(time, unit));
}

}  // namespace

// A checkpoint is not removed while it is exported, nor exported once it is removed.
struct Keeper::Claims {
  std::mutex mutex;
  int64_t exported = -1;  // now
  std::set<int64_t> removed;

  bool MayRemove(int64_t step) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (step == exported) return false;
    removed.insert(step);
    return true;
  }
  bool MayExport(int64_t step) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (removed.count(step) > 0) return false;
    exported = step;
    return true;
  }
  void EndExport() {
    const std::lock_guard<std::mutex> lock(mutex);
    exported = -1;
  }
  // It is saved anew.
  void Renew(int64_t step) {
    const std::lock_guard<std::mutex> lock(mutex);
    removed.erase(step);
  }
};

Keeper::Keeper(KeeperOptions options)
    : options_(std::move(options)),
      writer_(options_.folder, options_.rank, options_.num_ranks, options_.keep, options_.on_block),
      claims_(std::make_shared<Claims>()) {
  if (options_.comm != nullptr) options_.comm->SetInputStream(nullptr);
}

Keeper::~Keeper() {
  is_leaving_ = true;
  if (is_open_ && stage_ != kOver && options_.comm != nullptr) {
    options_.comm->Abort(
        absl::StrCat("rank ", options_.rank, " left while a checkpoint was saved"));
  }
  if (thread_.joinable()) thread_.join();
}

void Keeper::Save(int64_t step, absl::Span<const TensorRange> ranges, const std::string& state,
                  const CopyOut& copy_out) {
  OMNI_CHECK(!is_open_);
  is_open_ = true;
  stage_ = 0;
  writer_.Begin(step, ranges, state, copy_out);
  thread_ = std::thread([this] {
    NameThread("keeper");
    KeepSave();
  });
}

absl::Status Keeper::FinishSave(const std::function<absl::Status()>& meet) {
  if (!is_open_) return absl::OkStatus();
  // Each waits for its own part, and says so by its progress; then for the others, of whom it finds
  // those that are gone. Likewise for rank 0, which commits.
  AwaitStage(kWritten);
  OMNI_RETURN_IF_ERROR(meet());
  if (options_.rank == 0) AwaitStage(kOver);
  OMNI_RETURN_IF_ERROR(meet());
  AwaitStage(kOver);
  thread_.join();
  is_open_ = false;
  return absl::OkStatus();
}

// Its own limits hold there: so this rank vouches for it.
void Keeper::AwaitStage(int stage) {
  while (stage_ < stage) {
    options_.progress->Tick();
    absl::SleepFor(kLook);
  }
}

void Keeper::KeepSave() {
  const int64_t step = writer_.step();
  const absl::Status status = WriteAndCommit();
  if (status.ok()) {
    saved_step_ = step;
    claims_->Renew(step);
    if (options_.rank == 0) StartChores(step);
  } else if (!absl::IsCancelled(status)) {
    if (!absl::IsAborted(status)) {  // else another rank has said why
      options_.warn(
          absl::StrCat("checkpoint of step ", step, " was not saved: ", status.message()));
    }
    if (options_.rank == 0) {
      (void)RunSideWork("removing what was written of it",
                        [folder = options_.folder](const OnBlock& tick) {
                          RemovePartialCheckpoints(folder, tick);
                          return absl::OkStatus();
                        });
    }
  }
  stage_ = kOver;
}

absl::Status Keeper::WriteAndCommit() {
  absl::Status own = AwaitOwnPart();
  own.Update(writer_.Finish());
  stage_ = kWritten;
  if (absl::IsCancelled(own)) return own;
  OMNI_ASSIGN_OR_RETURN(const int32_t failed, CountFailures(!own.ok(), "written"));
  OMNI_RETURN_IF_ERROR(own);
  if (failed > 0) return absl::AbortedError(absl::StrCat(failed, " other ranks did not write it"));
  if (options_.rank == 0) {
    own = RunSideWork("committing it", [folder = options_.folder, step = writer_.step(),
                                        ranks = options_.num_ranks](const OnBlock& tick) {
      return CommitCheckpoint(folder, step, ranks, tick);
    });
  }
  OMNI_ASSIGN_OR_RETURN(const int32_t uncommitted, CountFailures(!own.ok(), "committed"));
  OMNI_RETURN_IF_ERROR(own);
  return uncommitted == 0 ? absl::OkStatus() : absl::AbortedError("rank 0 did not commit it");
}

absl::Status Keeper::AwaitOwnPart() {
  using State = CheckpointWriter::Progress;
  const absl::Status status =
      Watch(absl::StrCat("to be written here (", checkpoint_layout::ShardName(options_.rank), ")"),
            &writer_.blocks(), [&] { return writer_.progress() != State::kWriting; });
  if (!status.ok()) writer_.Abandon(status);
  return absl::OkStatus();  // Finish tells
}

absl::StatusOr<int32_t> Keeper::CountFailures(bool failed, const char* what) {
  int32_t count = failed ? 1 : 0;
  if (options_.comm == nullptr) return count;
  const TensorView view = TensorView::Dense(&count, DType::kInt32, DeviceKind::kCpu, {1});
  // Not awaited, so no deadline of the communicator's holds: others may be slow, and those that are
  // gone are found by those who step.
  const WorkPtr work = options_.comm->AllReduce(view, ReduceOp::kSum);
  const absl::Status met = Watch(absl::StrCat("to be ", what, " by the other ranks"), nullptr,
                                 [&] { return work->IsDone(); });
  if (!met.ok()) {  // leaving; the call ends with the communicator
    options_.comm->Abort("the job ended while a checkpoint was saved");
    while (!work->IsDone()) absl::SleepFor(kLook);
    return met;
  }
  const absl::Status status = work->WaitHost(absl::InfiniteDuration());
  if (!status.ok()) return absl::CancelledError(status.message());  // the job has ended
  return count;
}

absl::Status Keeper::RunSideWork(const std::string& what, SideWork::Task task) {
  SideWork work(std::move(task), options_.on_block);
  OMNI_RETURN_IF_ERROR(Watch(what, &work.progress(), [&] { return work.is_over(); }));
  return work.status();
}

absl::Status Keeper::Watch(const std::string& what, const Progress* work,
                           const std::function<bool()>& is_over) {
  const WorkingClock& clock = WorkingClock::OfProcess();
  const absl::Duration start = clock.Now();
  std::optional<Stillness> still;
  if (work != nullptr) still.emplace(*work);
  absl::Duration say_at = options_.limits.collective;
  while (!is_over()) {
    if (is_leaving_) return absl::CancelledError("the rank leaves");
    if (options_.comm != nullptr && !options_.comm->status().ok()) {
      return absl::CancelledError("the job has ended");
    }
    const absl::Duration waited = clock.Now() - start;
    if (still && still->Last() >= options_.limits.storage) {
      return absl::UnavailableError(absl::StrCat("waited for it ", what, "; nothing has moved for ",
                                                 Long(options_.limits.storage)));
    }
    if (waited >= say_at) {
      options_.warn(absl::StrCat(
          "the checkpoint of step ", writer_.step(), " waits since ", Long(waited), " ", what,
          still ? absl::StrCat("; the last block moved ", Long(still->Last()), " ago") : ""));
      say_at = 2 * waited;
    }
    absl::SleepFor(kLook);
  }
  return absl::OkStatus();
}

// Copies what it needs: it may outlive the keeper.
SideWork::Task Keeper::Pruning(int64_t step) const {
  return [folder = options_.folder, keep = options_.keep, step,
          claims = claims_](const OnBlock& tick) {
    return PruneCheckpoints(folder, step, keep, tick,
                            [&](int64_t old) { return claims->MayRemove(old); });
  };
}

SideWork::Task Keeper::Exporting(int64_t step) const {
  return [path = checkpoint_layout::Folder(options_.folder, step), step, claims = claims_,
          warn = options_.warn, write = options_.export_checkpoint](const OnBlock& tick) {
    absl::Status status = absl::CancelledError("it has been removed by then");
    if (claims->MayExport(step)) status = write(path, tick);
    claims->EndExport();
    if (!status.ok()) {
      warn(absl::StrCat("the export of the checkpoint of step ", step,
                        " failed: ", status.message()));
    }
    return status;
  };
}

void Keeper::StartChores(int64_t step) {
  constexpr size_t kMostExports = 2;
  if (removals_ == nullptr) removals_ = std::make_unique<ChoreLine>(1, options_.on_block);
  removals_->Add(Pruning(step));  // it stands for the one before
  if (!options_.export_checkpoint) return;
  if (exports_ == nullptr) exports_ = std::make_unique<ChoreLine>(kMostExports, options_.on_block);
  if (!exports_->Add(Exporting(step))) {
    options_.warn(
        "exports take longer than checkpoints are apart: an older checkpoint is not exported");
  }
}

void Keeper::FinishChores() {
  const WorkingClock& clock = WorkingClock::OfProcess();
  const auto finish = [&](ChoreLine& line, const std::string& what) {
    line.End();
    const absl::Duration start = clock.Now();
    bool dropped = false;
    const absl::Status status = Watch(what, &line.progress(), [&] {
      options_.progress->Tick();
      if (!dropped && options_.stops() && clock.Now() - start > kGraceOfExports) {
        dropped = true;
        line.Drop(/*running=*/true);
      }
      return line.is_over();
    });
    if (!status.ok()) options_.warn(std::string(status.message()));
  };
  if (exports_ != nullptr) finish(*exports_, "for its export");
  if (removals_ != nullptr) {
    removals_->Add(Pruning(saved_step_));  // what was being exported before
    finish(*removals_, "for the removal of older ones");
  }
  exports_.reset();
  removals_.reset();
}

}  // namespace omni::trainer
