// What CPU kernels share: loops cut by shape over the thread pool, and bf16 from fp32 kernels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "runtime/device/kernel_table.h"

namespace omni::cpu {

// body(task) for each task, on the pool's threads.
template <typename Body>
void ParallelFor(const KernelContext& context, int64_t num_tasks, const Body& body) {
  context.parallel_for(
      context.pool, num_tasks,
      [](void* arg, int64_t task) { (*static_cast<const Body*>(arg))(task); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// body(begin, end) over [0, num_rows) in chunks whose size depends on the shape alone: about
// `chunk_elements` elements each.
inline int64_t RowsPerChunk(int64_t row_elements, int64_t chunk_elements = 32768) {
  return std::max<int64_t>(1, chunk_elements / std::max<int64_t>(1, row_elements));
}
template <typename Body>
void ParallelForRows(const KernelContext& context, int64_t num_rows, int64_t row_elements,
                     const Body& body, int64_t chunk_elements = 32768) {
  const int64_t chunk = RowsPerChunk(row_elements, chunk_elements);
  ParallelFor(context, (num_rows + chunk - 1) / chunk,
              [&](int64_t task) { body(task * chunk, std::min(num_rows, (task + 1) * chunk)); });
}

// Makes a bf16 kernel of an fp32 one. `Args` lists its views:
//
//   template <typename F> void VisitViews(F&& f) { f.In(x); f.In(w); f.Out(y); f.InOut(acc); }
//
// bf16 views are widened to fp32 in scratch before the run (In, InOut) and rounded after it (Out,
// InOut); views of other dtypes (fp32 weight gradients, int32 ids) and empty ones pass as they
// are. Register with
//
//   .run = BFloat16Run<LinearArgs, RunLinear<float>>,
//   .scratch_bytes = BFloat16Scratch<LinearArgs, ScratchLinear<float>>   // or nullptr inside
namespace bfloat16_internal {

inline constexpr int64_t kAlign = 64;
inline int64_t Aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

struct Measure {
  int64_t bytes = 0;
  void Add(const TensorView& view) {
    if (!view.empty() && view.dtype == DType::kBFloat16) bytes += Aligned(view.num_elements() * 4);
  }
  void In(const TensorView& view) { Add(view); }
  void Out(const TensorView& view) { Add(view); }
  void InOut(const TensorView& view) { Add(view); }
};

void Widen(const KernelContext& context, const TensorView& from, const TensorView& to);
void Narrow(const KernelContext& context, const TensorView& from, const TensorView& to);

// Replaces each bf16 view by its fp32 twin in scratch, remembering what to write back.
struct Replace {
  const KernelContext& context;
  std::byte* next;
  struct Pair {
    TensorView wide, narrow;
  };
  Pair outputs[8];
  int num_outputs = 0;

  void Swap(TensorView& view, bool read, bool written) {
    if (view.empty() || view.dtype != DType::kBFloat16) return;
    const TensorView narrow = view;
    view = TensorView::Dense(next, DType::kFloat32, narrow.device, narrow.shape());
    next += Aligned(view.num_bytes());
    if (read) Widen(context, narrow, view);
    if (written) {
      OMNI_CHECK_LT(num_outputs, 8);
      outputs[num_outputs++] = {view, narrow};
    }
  }
  void In(TensorView& view) { Swap(view, true, false); }
  void Out(TensorView& view) { Swap(view, false, true); }
  void InOut(TensorView& view) { Swap(view, true, true); }
};

template <typename Args>
Args Widened(const void* args) {  // the same arguments as the fp32 kernel would see them
  Args wide = *static_cast<const Args*>(args);
  struct {
    void In(TensorView& view) {
      if (view.dtype == DType::kBFloat16)
        view = TensorView::Dense(view.data, DType::kFloat32, view.device, view.shape());
    }
    void Out(TensorView& view) { In(view); }
    void InOut(TensorView& view) { In(view); }
  } widen;
  wide.VisitViews(widen);
  return wide;
}

}  // namespace bfloat16_internal

template <typename Args, int64_t (*kScratch)(const void*) = nullptr>
int64_t BFloat16Scratch(const void* args) {
  Args copy = *static_cast<const Args*>(args);
  bfloat16_internal::Measure measure;
  copy.VisitViews(measure);
  if constexpr (kScratch != nullptr) {
    const Args wide = bfloat16_internal::Widened<Args>(args);
    measure.bytes += kScratch(&wide);
  }
  return measure.bytes;
}

template <typename Args, int32_t (*kRun)(const void*, const KernelContext*)>
int32_t BFloat16Run(const void* args, const KernelContext* context) {
  Args wide = *static_cast<const Args*>(args);
  bfloat16_internal::Replace replace{*context, static_cast<std::byte*>(context->scratch), {}, 0};
  wide.VisitViews(replace);
  KernelContext inner = *context;
  inner.scratch = replace.next;
  inner.scratch_bytes =
      context->scratch_bytes - (replace.next - static_cast<std::byte*>(context->scratch));
  const int32_t error = kRun(&wide, &inner);
  for (int i = 0; i < replace.num_outputs; ++i) {
    bfloat16_internal::Narrow(*context, replace.outputs[i].wide, replace.outputs[i].narrow);
  }
  return error;
}

}  // namespace omni::cpu
