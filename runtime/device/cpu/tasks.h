// Cutting work into tasks by its shape, and sharing out a kernel's scratch memory. Included by
// kernels of several SIMD targets, hence always inline (vector_math.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "runtime/device/kernel_table.h"

namespace omni::cpu {

[[gnu::always_inline]] constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
[[gnu::always_inline]] constexpr int64_t AtMost(int64_t a, int64_t b) { return a < b ? a : b; }
[[gnu::always_inline]] constexpr int64_t AtLeast(int64_t a, int64_t b) { return a > b ? a : b; }

// body(task) for each task in [0, num_tasks), on the context's threads.
template <typename Body>
void ForEachTask(const KernelContext& context, int64_t num_tasks, const Body& body) {
  if (num_tasks <= 0) return;
  context.parallel_for(
      context.pool, num_tasks,
      [](void* arg, int64_t task) { (*static_cast<const Body*>(arg))(task); },
      const_cast<Body*>(&body));
}

// body(begin, end) over [0, count) in pieces of `grain`.
template <typename Body>
void ForEachRange(const KernelContext& context, int64_t count, int64_t grain, const Body& body) {
  ForEachTask(context, CeilDiv(count, grain),
              [&](int64_t task) { body(task * grain, AtMost(count, (task + 1) * grain)); });
}

// Rows so that one task touches about 32 Ki elements.
[[gnu::always_inline]] constexpr int64_t RowGrain(int64_t row_elements) {
  return AtLeast(1, (int64_t{1} << 15) / AtLeast(1, row_elements));
}

// Hands out pieces of a kernel's scratch; with a null base it only counts, so that
// scratch_bytes and run share one function.
class Scratch {
 public:
  [[gnu::always_inline]] explicit Scratch(void* base) : base_(static_cast<std::byte*>(base)) {}

  template <typename T>
  [[gnu::always_inline]] T* Take(int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += CeilDiv(count * static_cast<int64_t>(sizeof(T)), 64) * 64;
    return piece;
  }
  [[gnu::always_inline]] int64_t used() const { return used_; }

 private:
  std::byte* base_;
  int64_t used_ = 0;
};

// What elements of storage type T are computed in.
template <typename T>
using ComputeOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// An entry for a kernel written as int64_t Body(args, context), which with no context returns
// the bytes of scratch it needs, and otherwise runs and returns 0 or an error code.
template <typename Args, int64_t (*Body)(const Args&, const KernelContext*)>
KernelEntry MakeEntry(OpId op, DType dtype, const char* name, int32_t priority = 0) {
  return {.op = op,
          .device = DeviceKind::kCpu,
          .dtype = dtype,
          .name = name,
          .priority = priority,
          .run = [](const void* args, const KernelContext* context) -> int32_t {
            return static_cast<int32_t>(Body(*static_cast<const Args*>(args), context));
          },
          .supports = nullptr,
          .scratch_bytes = [](const void* args) -> int64_t {
            return Body(*static_cast<const Args*>(args), nullptr);
          }};
}

}  // namespace omni::cpu
