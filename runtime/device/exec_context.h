// What every op is given: where to run, where to put its outputs, and whether to remember
// anything for the backward pass. Ops enqueue on ctx.stream and return.
//
//   ExecContext ctx{.device = *device, .stream = *stream, .tape = &tape};
//   Var y_TO = Linear(ctx, x_TI, weight, &bias);
//   std::vector<float> y = HostRead<float>(ctx, y_TO.value);
#pragma once

#include <initializer_list>
#include <type_traits>
#include <vector>

#include "absl/types/span.h"
#include "runtime/device/device.h"
#include "runtime/tensor/view.h"

namespace omni {

class Tape;  // runtime/ops/tape.h

// Owns the tensors of a stretch of work that has no tape (inference, optimizer, gradients in
// flight): all are freed together by Release or the destructor.
class TensorArena {
 public:
  explicit TensorArena(Device& device) : device_(device) {}
  ~TensorArena() { Release(); }
  TensorArena(const TensorArena&) = delete;
  TensorArena& operator=(const TensorArena&) = delete;

  // Uninitialised. Exhausting the reservation CHECK-fails with the pool's message: the plan
  // reserved too little, which no caller can mend in the middle of a step.
  TensorView New(DType dtype, absl::Span<const int64_t> sizes);
  void Release();

  // The pages that hold `view` are the caller's from now on; an empty run if they are not here.
  PageRun Disown(const TensorView& view);

 private:
  Device& device_;
  std::vector<PageRun> runs_;
};

struct ExecContext {
  Device& device;
  Stream& stream;
  Tape* tape = nullptr;          // null: nothing is recorded
  TensorArena* arena = nullptr;  // where outputs go when there is no tape

  // An uninitialised output tensor, owned by the tape if there is one, else by the arena.
  // (Defined beside the tape, in runtime/ops/tape.cc.)
  TensorView New(DType dtype, absl::Span<const int64_t> sizes);
  TensorView New(DType dtype, std::initializer_list<int64_t> sizes) {
    return New(dtype, absl::MakeConstSpan(sizes.begin(), sizes.size()));
  }
};

// Finds the kernel and enqueues it with a copy of `args`. CHECK-fails, listing what was tried,
// if no kernel supports the arguments.
void LaunchKernel(ExecContext& ctx, OpId op, DType dtype, const void* args, int64_t args_bytes);

template <typename Args>
void Launch(ExecContext& ctx, OpId op, DType dtype, const Args& args) {
  static_assert(std::is_trivially_copyable_v<Args>);
  LaunchKernel(ctx, op, dtype, &args, sizeof(Args));
}

// Copies host data (copied before returning) to a device view of the same size in bytes.
void Upload(ExecContext& ctx, const void* host, int64_t num_bytes, const TensorView& to);

// A new tensor on the device with these contents.
template <typename T>
TensorView UploadNew(ExecContext& ctx, absl::Span<const T> host,
                     std::initializer_list<int64_t> sizes) {
  TensorView view = ctx.New(DTypeOf<T>::value, sizes);
  OMNI_CHECK_EQ(view.num_elements(), static_cast<int64_t>(host.size()));
  Upload(ctx, host.data(), view.num_bytes(), view);
  return view;
}

// Waits for the stream and copies a view (strided or not) to `to`, dense. The only way the
// host reads a tensor.
void HostReadBytes(ExecContext& ctx, const TensorView& from, void* to);

template <typename T>
std::vector<T> HostRead(ExecContext& ctx, const TensorView& from) {
  OMNI_CHECK(DTypeOf<T>::value == from.dtype);
  std::vector<T> host(from.num_elements());
  HostReadBytes(ctx, from, host.data());
  return host;
}

}  // namespace omni
