#include "dataloader/loader.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "dataloader/media/scratch.h"
#include "dataloader/media_decoder.h"
#include "dataloader/step_builder.h"
#include "runtime/base/check.h"
#include "runtime/base/process.h"
#include "runtime/base/status.h"
#include "runtime/base/wait.h"

namespace omni::dataloader {
namespace {

// How long threads that are asked to end may take: storage that stalls does not hold up the end of
// a job.
constexpr absl::Duration kStopLimit = absl::Seconds(5);

// A step on its way: laid out, being filled, or full.
struct Pending {
  std::unique_ptr<StepBuilder> builder;  // null: `status` says why
  int64_t bytes = 0;
  size_t next_task = 0;
  size_t tasks_done = 0;
  absl::Status status;
  size_t failed_task = 0;  // of status: the earliest, whichever thread met it

  size_t num_tasks() const { return builder == nullptr ? 0 : builder->num_tasks(); }
  bool is_full() const { return tasks_done == num_tasks(); }
};

}  // namespace

// Owned by the loader and by each of its threads: one that never comes back from storage keeps what
// it uses.
class Loader::Impl {
 public:
  Impl(std::shared_ptr<const SamplePlanner> samples, std::unique_ptr<StepPlanner> planner,
       const Options& options)
      : samples_(std::move(samples)),
        planner_(std::move(planner)),
        decoder_(samples_->config(), options.video, &decoded_),
        storage_(options.storage),
        view_{.rank = options.rank,
              .data = NameEncoders(options.data, samples_->config()),
              .costs = options.costs},
        progress_(options.progress) {}

  static void Start(const std::shared_ptr<Impl>& self) {
    const PrefetchConfig& prefetch = self->samples_->config().loader;
    if (prefetch.threads == 0) return;
    self->num_threads_ = 1 + prefetch.threads;
    for (int32_t i = 0; i <= prefetch.threads; ++i) {
      std::thread([self, i] {
        NameThread(i == 0 ? "data plan" : "data decode");
        if (i == 0) {
          self->Plan();
        } else {
          self->Decode();
        }
        self->Leave();
      }).detach();
    }
    self->has_threads_ = true;
  }

  // Waits for the threads, for kStopLimit at most; those left then touch nothing of the caller's.
  void Stop() {
    if (storage_ != nullptr) storage_->StopRetries();
    {
      // Not while `costs`, which is the caller's, is asked.
      const std::lock_guard costs_lock(costs_mutex_);
      const std::lock_guard lock(mutex_);
      is_stopping_ = true;
    }
    changed_.notify_all();
    std::unique_lock lock(mutex_);
    WaitFor(changed_, lock, {.limit = kStopLimit}, [this] { return num_threads_ == 0; });
  }

  absl::StatusOr<StepBatch> Next(absl::Duration limit, const std::function<bool()>& stop) {
    if (!has_threads_) return NextInline();
    std::unique_ptr<Pending> pending;
    {
      std::unique_lock lock(mutex_);
      OMNI_RETURN_IF_ERROR(AwaitFront(lock, limit, stop));
      // A failed step stays in front: later calls fail alike.
      if (!queue_.front()->status.ok()) return queue_.front()->status;
      pending = std::move(queue_.front());
      queue_.pop_front();
      bytes_ -= pending->bytes;
    }
    changed_.notify_all();
    return pending->builder->Finish();
  }

  int64_t queue_depth() const {
    const std::lock_guard lock(mutex_);
    return static_cast<int64_t>(queue_.size());
  }
  int64_t buffered_bytes() const {
    const std::lock_guard lock(mutex_);
    return bytes_;
  }
  int64_t buffered_bytes_max() const {
    const std::lock_guard lock(mutex_);
    return bytes_max_;
  }
  void Recycle(StepBatch batch) {
    for (std::vector<EncodeBatch>& groups : batch.encodes) {
      for (EncodeBatch& encode : groups) {
        buffers_.Give(std::move(encode.whole.payload));
        buffers_.Give(std::move(encode.shard.payload));
      }
    }
  }
  int64_t kept_bytes() const { return buffers_.kept_bytes(); }
  int64_t decoding_bytes() const { return decoder_.held_bytes(); }
  int64_t plan_bytes() const { return planner_->held_bytes(); }
  int64_t table_bytes() const { return samples_->held_bytes(); }
  int64_t max_table_bytes() const { return samples_->max_held_bytes(); }
  int64_t max_plan_bytes() const { return planner_->max_held_bytes(); }
  // What waits, as much again for the step in use and storage kept for the next, and what threads
  // keep of pixels.
  int64_t max_media_bytes() const {
    const PrefetchConfig& prefetch = samples_->config().loader;
    return 2 * (prefetch.memory_mib << 20) + std::max(prefetch.threads, 1) * Scratch::kMaxKeptBytes;
  }

 private:
  // Until the step in front is full; as long as samples get ready, if others than its own, and
  // nobody asks to stop: the step stays in front.
  absl::Status AwaitFront(std::unique_lock<std::mutex>& lock, absl::Duration limit,
                          const std::function<bool()>& stop) {
    const auto is_ready = [this] { return !queue_.empty() && queue_.front()->is_full(); };
    Stillness decoded(decoded_), planned(samples_->progress());
    while (!is_ready()) {
      if (stop && stop()) {
        return absl::CancelledError("stopped while waiting for the data of the next step");
      }
      const absl::Duration still = std::min(decoded.Last(), planned.Last());
      if (still >= limit) {
        const auto names = decoding_.empty() ? samples_->in_work()
                                             : std::vector(decoding_.begin(), decoding_.end());
        const std::string trouble = storage_ == nullptr ? "" : storage_->trouble();
        return absl::DeadlineExceededError(absl::StrCat(
            "the data of the next step are not ready; no sample got ready for ",
            absl::FormatDuration(limit), "; being ", decoding_.empty() ? "planned" : "decoded",
            ": ", names.empty() ? "none" : absl::StrJoin(names, ", "),
            trouble.empty() ? "" : absl::StrCat("; being read again: ", trouble)));
      }
      constexpr absl::Duration kLook = absl::Milliseconds(50);
      changed_.wait_for(lock, absl::ToChronoNanoseconds(std::min(kLook, limit - still)));
      const bool has_decoded = decoded.Grew(), has_planned = planned.Grew();  // both look
      if (progress_ != nullptr && (has_decoded || has_planned)) progress_->Tick();
    }
    return absl::OkStatus();
  }

  absl::StatusOr<StepBatch> NextInline() {
    if (!inline_status_.ok()) return inline_status_;
    auto plan = planner_->Next();
    if (!plan.ok()) return inline_status_ = plan.status();
    StepBuilder builder(*samples_, *std::move(plan), view_);
    builder.Allocate(buffers_);
    {
      const std::lock_guard lock(mutex_);
      bytes_max_ = std::max(bytes_max_, builder.payload_bytes());
    }
    for (size_t task = 0; task < builder.num_tasks(); ++task) {
      inline_status_ = builder.Fill(task, decoder_);
      if (progress_ != nullptr) progress_->Tick();
      if (!inline_status_.ok()) return inline_status_;
    }
    return builder.Finish();
  }

  // The planning thread.
  void Plan() {
    const PrefetchConfig& prefetch = samples_->config().loader;
    const int64_t bytes_cap = prefetch.memory_mib << 20;
    while (true) {
      auto plan = planner_->Next();
      if (!plan.ok()) {
        auto failed = std::make_unique<Pending>();
        failed->status = plan.status();
        Push(std::move(failed));
        return;
      }
      auto pending = std::make_unique<Pending>();
      {
        const std::lock_guard costs_lock(costs_mutex_);
        if (is_stopping()) return;
        pending->builder = std::make_unique<StepBuilder>(*samples_, *std::move(plan), view_);
      }
      pending->bytes = pending->builder->payload_bytes();
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] {
          return is_stopping_ || queue_.empty() ||
                 (static_cast<int32_t>(queue_.size()) < prefetch.prefetch_steps &&
                  bytes_ + pending->bytes <= bytes_cap);
        });
        if (is_stopping_) return;
        bytes_ += pending->bytes;
        bytes_max_ = std::max(bytes_max_, bytes_);
      }
      pending->builder->Allocate(buffers_);
      Push(std::move(pending));
    }
  }

  bool is_stopping() const {
    const std::lock_guard lock(mutex_);
    return is_stopping_;
  }

  // The last that a thread does here.
  void Leave() {
    const std::lock_guard lock(mutex_);
    --num_threads_;
    changed_.notify_all();
  }

  void Push(std::unique_ptr<Pending> pending) {
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back(std::move(pending));
    }
    changed_.notify_all();
  }

  // A decoding thread: the earliest task of the earliest step that has one.
  void Decode() {
    while (true) {
      Pending* pending = nullptr;
      size_t task = 0;
      std::multiset<std::string>::iterator mark;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] {
          const auto found = std::find_if(queue_.begin(), queue_.end(), [](const auto& step) {
            return step->next_task < step->num_tasks();
          });
          pending = found == queue_.end() ? nullptr : found->get();
          return is_stopping_ || pending != nullptr;
        });
        if (is_stopping_) return;
        task = pending->next_task++;
        if (!pending->status.ok()) {
          // The step has failed: its other samples are not waited for, each with its own retries.
          ++pending->tasks_done;
          decoded_.Tick();
          lock.unlock();
          changed_.notify_all();
          continue;
        }
        mark = decoding_.insert(pending->builder->sample_id(task));
      }
      // The step stays in the queue until all its tasks are done, so `pending` lives.
      const absl::Status status = pending->builder->Fill(task, decoder_);
      {
        const std::lock_guard lock(mutex_);
        decoding_.erase(mark);
        if (!status.ok() && (pending->status.ok() || task < pending->failed_task)) {
          pending->status = status;
          pending->failed_task = task;
        }
        ++pending->tasks_done;
        decoded_.Tick();
      }
      changed_.notify_all();
    }
  }

  const std::shared_ptr<const SamplePlanner> samples_;
  const std::unique_ptr<StepPlanner> planner_;  // the planning thread's
  const MediaDecoder decoder_;
  const std::shared_ptr<Storage> storage_;  // shared with the sources; null: none to stop
  const LoaderView view_;
  const std::shared_ptr<Progress> progress_;  // shared: the rank's; may be null
  Progress decoded_;                          // samples, and frames of clips
  PayloadBuffers buffers_;

  std::mutex costs_mutex_;    // held while view_.costs is asked; taken before mutex_
  bool has_threads_ = false;  // the caller's

  mutable std::mutex mutex_;  // of everything below it
  std::condition_variable changed_;
  std::deque<std::unique_ptr<Pending>> queue_;
  std::multiset<std::string> decoding_;  // sample ids, for messages
  int64_t bytes_ = 0;
  int64_t bytes_max_ = 0;
  bool is_stopping_ = false;
  absl::Status inline_status_;
  int32_t num_threads_ = 0;  // that have not left
};

absl::StatusOr<std::shared_ptr<const SamplePlanner>> OpenSources(
    const DataConfig& config, std::shared_ptr<const VideoPlugin> video,
    std::shared_ptr<Storage> storage) {
  OMNI_ASSIGN_OR_RETURN(std::shared_ptr<const Tokenizer> tokenizer,
                        Tokenizer::Load(config.tokenizer, config.special_tokens));
  std::vector<OpenedSource> sources;
  for (const SourceConfig& source : config.sources) {
    auto store = OpenSource(source.path, {.video = video, .storage = storage});
    if (!store.ok()) {
      return Annotate(store.status(), absl::StrCat("data source \"", source.name, "\""));
    }
    sources.push_back({source.name, *std::move(store), source.video_fps, source.path,
                       SourceBytes(source.path, storage.get())});
  }
  return std::make_shared<const SamplePlanner>(config, std::move(sources), std::move(tokenizer));
}

Loader::Loader(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
Loader::~Loader() { impl_->Stop(); }

absl::StatusOr<std::unique_ptr<Loader>> Loader::Create(const DataConfig& config, int32_t rank,
                                                       int32_t world, LoaderState start) {
  const auto storage =
      std::make_shared<Storage>(Storage::Options{.retry = absl::Seconds(config.loader.retry_s)});
  OMNI_ASSIGN_OR_RETURN(auto samples, OpenSources(config, /*video=*/nullptr, storage));
  return Create(std::move(samples), {.rank = rank,
                                     .data = parallel::DataLayout::DataParallel(world),
                                     .costs = {},
                                     .start = std::move(start),
                                     .video = nullptr,
                                     .storage = storage});
}

absl::StatusOr<std::unique_ptr<Loader>> Loader::Create(std::shared_ptr<const SamplePlanner> samples,
                                                       Options options) {
  OMNI_CHECK(options.rank >= 0 && options.rank < options.data.num_ranks());
  const int32_t replicas = options.data.replicas, replica = options.data.Replica(options.rank);
  OMNI_ASSIGN_OR_RETURN(
      auto planner, StepPlanner::Create(samples, std::move(options.start),
                                        [=](int32_t lane) { return lane % replicas == replica; }));
  auto impl = std::make_shared<Impl>(std::move(samples), std::move(planner), options);
  Impl::Start(impl);
  return std::unique_ptr<Loader>(new Loader(std::move(impl)));
}

absl::StatusOr<StepBatch> Loader::Next(absl::Duration limit, const std::function<bool()>& stop) {
  return impl_->Next(limit, stop);
}
int64_t Loader::queue_depth() const { return impl_->queue_depth(); }
int64_t Loader::buffered_bytes() const { return impl_->buffered_bytes(); }
int64_t Loader::buffered_bytes_max() const { return impl_->buffered_bytes_max(); }
void Loader::Recycle(StepBatch batch) { impl_->Recycle(std::move(batch)); }
int64_t Loader::kept_bytes() const { return impl_->kept_bytes(); }
int64_t Loader::decoding_bytes() const { return impl_->decoding_bytes(); }
int64_t Loader::plan_bytes() const { return impl_->plan_bytes(); }
int64_t Loader::max_media_bytes() const { return impl_->max_media_bytes(); }
int64_t Loader::max_plan_bytes() const { return impl_->max_plan_bytes(); }
int64_t Loader::max_table_bytes() const { return impl_->max_table_bytes(); }
int64_t Loader::table_bytes() const { return impl_->table_bytes(); }

}  // namespace omni::dataloader
