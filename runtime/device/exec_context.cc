#include "runtime/device/exec_context.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/device/work_count.h"

namespace omni {
namespace {

thread_local std::shared_ptr<Progress> counted;  // see WorkCount

// What a kernel knows as its pool.
struct CountingPool {
  ThreadPool* threads;
  Progress* progress;  // may be null
};

void ParallelForTrampoline(void* pool, int64_t num_tasks, void (*body)(void*, int64_t), void* arg) {
  const auto& [threads, progress] = *static_cast<CountingPool*>(pool);
  if (progress == nullptr) {
    threads->ParallelFor(num_tasks, body, arg);
    return;
  }
  struct Counting {
    void (*body)(void*, int64_t);
    void* arg;
    Progress* progress;
  } counting = {body, arg, progress};
  threads->ParallelFor(
      num_tasks,
      [](void* self, int64_t task) {
        const auto& [inner, inner_arg, ticked] = *static_cast<Counting*>(self);
        inner(inner_arg, task);
        ticked->Tick();
      },
      &counting);
}

// Largest argument struct a kernel may have.
constexpr int64_t kMaxArgsBytes = 2048;

PageRun MustAllocate(Device& device, int64_t num_bytes) {
  auto run = device.pool().Allocate(num_bytes);
  OMNI_CHECK_OK(run.status());
  return *run;
}

}  // namespace

WorkCount::WorkCount(std::shared_ptr<Progress> progress)
    : before_(std::exchange(counted, std::move(progress))) {}

WorkCount::~WorkCount() { counted = before_; }

std::shared_ptr<Progress> WorkCount::OfThread() { return counted; }

TensorView TensorArena::New(DType dtype, absl::Span<const int64_t> sizes) {
  TensorView view = TensorView::Dense(nullptr, dtype, device_.kind(), sizes);
  const PageRun run = MustAllocate(device_, view.num_bytes());
  runs_.push_back(run);
  view.data = run.data;
  return view;
}

PageRun TensorArena::Disown(const TensorView& view) {
  const auto* data = static_cast<const std::byte*>(view.data);
  for (PageRun& run : runs_) {
    if (data < run.data || data >= run.data + run.num_bytes) continue;
    std::swap(run, runs_.back());
    const PageRun disowned = runs_.back();
    runs_.pop_back();
    return disowned;
  }
  return {};
}

void TensorArena::Release() {
  for (const PageRun& run : runs_) device_.pool().Free(run);
  runs_.clear();
}

void LaunchKernel(ExecContext& ctx, OpId op, DType dtype, const void* args, int64_t args_bytes) {
  const KernelEntry* kernel = ctx.device.kernels().Find(op, ctx.device.kind(), dtype, args);
  if (kernel == nullptr) {
    CheckFailed(__FILE__, __LINE__, ctx.device.kernels().Explain(op, ctx.device.kind(), dtype));
  }
  OMNI_CHECK_LE(args_bytes, kMaxArgsBytes);
  const int64_t scratch_bytes = kernel->scratch_bytes == nullptr ? 0 : kernel->scratch_bytes(args);
  const PageRun scratch = scratch_bytes == 0 ? PageRun{} : MustAllocate(ctx.device, scratch_bytes);
  // Scratch changes hands in the order of the memory stream, so another stream joins it around
  // the kernel.
  Stream* memory_stream = ctx.device.memory_stream();
  const bool joins =
      scratch.data != nullptr && memory_stream != nullptr && memory_stream != &ctx.stream;
  if (joins) ctx.stream.Wait(memory_stream->Record());
  KernelContext context = ctx.device.ContextOn(ctx.stream);
  context.scratch = scratch.data;
  context.scratch_bytes = scratch_bytes;
  context.parallel_for = ParallelForTrampoline;
  const auto run = [kernel, context, &device = ctx.device,
                    progress = counted](const void* kernel_args) {
    CountingPool pool = {static_cast<ThreadPool*>(context.pool), progress.get()};
    KernelContext counting = context;
    counting.pool = &pool;
    const int32_t error = kernel->run(kernel_args, &counting);
    if (error != 0) {
      CheckFailed(__FILE__, __LINE__,
                  absl::StrCat(kernel->name, " failed with ", device.DescribeError(error)));
    }
    if (progress != nullptr) progress->Tick();
  };
  if (ctx.device.launches_at_once()) {
    run(args);
  } else {
    std::vector<std::byte> copy(static_cast<const std::byte*>(args),
                                static_cast<const std::byte*>(args) + args_bytes);
    ctx.stream.RunOnHost([run, copy = std::move(copy)] { run(copy.data()); });
  }
  if (joins) memory_stream->Wait(ctx.stream.Record());
  // In stream order the next user of these pages comes after this kernel.
  if (scratch.data != nullptr) ctx.device.pool().Free(scratch);
}

void Upload(ExecContext& ctx, const void* host, int64_t num_bytes, const TensorView& to) {
  OMNI_CHECK_EQ(num_bytes, to.num_bytes());
  if (num_bytes > 0) ctx.device.CopyIn(ctx.stream, host, to);
}

void HostReadBytes(ExecContext& ctx, const TensorView& from, void* to) {
  OMNI_CHECK_OK(ctx.device.CopyOut(ctx.stream, from, to));
}

}  // namespace omni
